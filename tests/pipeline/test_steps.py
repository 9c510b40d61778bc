"""Which settings each step of the main job reads, and that no other makes its result stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from aegis.config import Config, PpoSettings, TrainSettings, parse_config
from aegis.pipeline import steps
from aegis.pipeline.context import StepContext
from aegis.pipeline.step import Step, read_settings
from aegis.pipeline.steps import stages

TRAINING = {"sft", "reward", "ppo"}
EVERYTHING = {
    "raw",
    "records",
    "model",
    "calibration",
    "answers",
    "benchmarks",
    "results",
} | TRAINING
# The steps that read what is under a path; the longest path counts.
READ_BY: dict[str, set[str]] = {
    "": set(),
    "seed": {"raw", "records", "results"} | TRAINING,
    "data": {"raw"},
    "data.quality": {"records"},
    "data.split": {"records"},
    "model": TRAINING,
    "model.system_prompt": {"records"} | TRAINING,
    "train": {"sft"},
    "train.algorithm": set(),  # it says which steps there are
    "train.datasets": set(),  # their content is an input
    "train.clip_norm": TRAINING,
    "train.max_length": TRAINING,
    "train.autocast": TRAINING,
    "train.batch_tokens": TRAINING,
    "train.reward": {"reward"},
    "train.ppo": {"ppo"},
    "train.dpo": set(),
    "train.group": set(),
    "export": {"model"},
    "evaluate": {"calibration", "results"},
    "evaluate.confidence": {"calibration", "answers", "benchmarks", "results"},
    "evaluate.max_miss_rate": {"calibration"},
    "evaluate.benchmark_items": {"benchmarks"},
    "evaluate.probe_records": {"results"},
    "evaluate.margin": {"results"},
    "evaluate.questions": {"answers"},
    "evaluate.question_language": {"answers"},
}


def leaves(settings: BaseModel, path: str = "") -> list[str]:
    found = []
    for name in type(settings).model_fields:
        value, place = getattr(settings, name), f"{path}.{name}".removeprefix(".")
        found += leaves(value, place) if isinstance(value, BaseModel) else [place]
    return found


def every_step(config: Config) -> list[Step]:
    return [step for stage in stages(config) for step in stage.steps]


def is_under(path: str, group: str) -> bool:
    return group in ("", path) or path.startswith(f"{group}.")


def test_every_setting_is_read_where_it_is_expected_and_nowhere_else() -> None:
    assert {step.name for step in every_step(Config())} == EVERYTHING
    for leaf in leaves(Config()):
        readers = {
            step.name
            for step in every_step(Config())
            if any(is_under(leaf, path) for path in step.settings)
        }
        place = max((path for path in READ_BY if is_under(leaf, path)), key=len)
        assert readers == READ_BY[place], leaf


@pytest.mark.parametrize("algorithm", ["sft", "ppo", "dpo", "grpo", "rloo"])
def test_the_paths_are_settings_and_the_last_training_makes_the_adapter(algorithm: str) -> None:
    config = parse_config({"train": {"algorithm": algorithm}}, where="t")
    names = [stage.name for stage in stages(config)]
    assert names == [
        "deep_research_data",
        "data_cleansing",
        "so8t_ppo_training",
        "aegis_v2_integration",
    ]
    made: set[str] = set()
    for step in every_step(config):
        assert read_settings(config, step.settings)
        assert {source for source in step.inputs if isinstance(source, str)} <= made
        made.add(step.artifact)
    training = stages(config)[2].steps
    assert training[-1].artifact == "adapter"
    assert training[-1].name == algorithm
    own = {"grpo": "group", "rloo": "group"}.get(algorithm, algorithm)
    assert algorithm == "sft" or f"train.{own}" in training[-1].settings


class LargerPpo(PpoSettings):
    """PPO with a setting that this AEGIS does not have."""

    patience: int = 3


class LargerTrain(TrainSettings):
    """Training with that PPO."""

    ppo: LargerPpo = LargerPpo()  # pyright: ignore[reportIncompatibleVariableOverride]


class LargerConfig(Config):
    """Settings with that training."""

    train: LargerTrain = LargerTrain()  # pyright: ignore[reportIncompatibleVariableOverride]


def fingerprints(config: Config, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    nothing: Any = None
    base: Any = type("Base", (), {"fingerprint": "base"})()
    contents = {name: {"file": name} for name in ("raw", "records", "sft", "reward", "adapter")}
    monkeypatch.setattr(steps, "source_files", lambda _: [])
    context = StepContext(config, base, nothing, nothing, nothing, contents)
    return {step.name: step.fingerprint(context) for step in every_step(config)}


def test_a_new_setting_of_ppo_leaves_what_came_before_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = fingerprints(Config(), monkeypatch)
    after = fingerprints(LargerConfig(), monkeypatch)
    assert {name for name in before if before[name] != after[name]} == {"ppo"}


def test_a_dataset_counts_by_its_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "decision": "DENY"}\n')
    config = parse_config({"train": {"datasets": [{"path": str(tmp_path / "a.jsonl")}]}}, where="t")
    before = fingerprints(config, monkeypatch)
    (tmp_path / "a.jsonl").write_text('{"prompt": "y", "decision": "DENY"}\n')
    after = fingerprints(config, monkeypatch)
    assert {name for name in before if before[name] != after[name]} == {"sft"}
