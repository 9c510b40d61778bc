"""The main job with DPO and with GRPO in PPO's place, on a tiny random model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_run import aegis, own_pairs, own_records


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("preference")
    own_records(folder / "own.jsonl", count=80)
    own_pairs(folder / "pairs.jsonl", count=12)
    (folder / "config.yaml").write_text(
        f"base: {base_folder.as_posix()}\n"
        "threads: 2\n"
        "data:\n"
        "  {seed_records: false, records: [own.jsonl], pairs: [pairs.jsonl],\n"
        "   generate: {samples: 0}}\n"
        "evaluate: {questions: 0, benchmark_items: 0, probe_records: 0}\n"
        "train:\n"
        "  algorithm: dpo\n"
        "  epochs: 0.1\n"
        "  probe_records: 16\n"
        "  refit_records: 32\n"
        "  reward: {epochs: 0.1, lora: {rank: 4, layers: [0.5, 1.0]}}\n"
        "  dpo: {epochs: 1, batch_tokens: 1024}\n"
        "  group: {updates: 1, prompts: 2, group: 2, section_tokens: 3, final_tokens: 4}\n"
    )
    return folder


@pytest.fixture(scope="module")
def first(place: Path) -> subprocess.CompletedProcess[str]:
    return aegis("run", "config.yaml", cwd=place)


def training(place: Path) -> dict[str, Any]:
    status = json.loads(aegis("status", "runs/latest", "--json", cwd=place).stdout)
    return next(stage for stage in status["stages"] if stage["name"] == "so8t_ppo_training")


def test_dpo_makes_the_adapter(place: Path, first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 0, first.stderr
    latest = place / "runs" / "latest"
    steps = training(place)["steps"]
    assert list(steps) == ["sft", "dpo"]
    assert steps["dpo"]["state"] == "completed"
    assert {"steps", "rewards/margins_last", "validation_accuracy"} <= steps["dpo"][
        "metrics"
    ].keys()
    card = json.loads((latest / "adapter" / "so8.json").read_text())
    assert card["training"]["dpo"]["metrics"] == steps["dpo"]["metrics"]
    assert card["training"]["dpo"]["settings"]["beta"] == 0.1
    history = (latest / "adapter" / "dpo_history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history] == list(range(1, len(history) + 1))
    assert (latest / "adapter" / "calibration.json").is_file()
    assert (latest / "model" / "certificate.json").is_file()
    assert not (latest / "reward").exists()
    assert "So it is" not in "".join(history)


def test_other_settings_leave_the_supervised_part_alone(
    place: Path, first: subprocess.CompletedProcess[str]
) -> None:
    grpo = aegis("run", "config.yaml", "--set", "train.algorithm=grpo", cwd=place)
    assert grpo.returncode == 0, grpo.stderr
    assert "sft/ taken over from an earlier session" in grpo.stderr
    assert list(training(place)["steps"]) == ["sft", "reward", "grpo"]
    rloo = aegis(
        "run",
        "config.yaml",
        "--set",
        "train.algorithm=rloo",
        "--set",
        "train.group.updates=2",
        cwd=place,
    )
    assert rloo.returncode == 0, rloo.stderr
    assert "sft/ taken over from an earlier session" in rloo.stderr
    assert "reward/ taken over from an earlier session" in rloo.stderr
    history = (
        (place / "runs" / "latest" / "adapter" / "rloo_history.jsonl").read_text().splitlines()
    )
    assert len(history) == 2
    assert "reward/reward_model" in json.loads(history[0])


def test_dpo_without_pairs_is_refused_before_anything_is_trained(place: Path) -> None:
    result = aegis("run", "config.yaml", "--set", "data.pairs=[]", cwd=place)
    assert result.returncode == 2
    assert "train.algorithm dpo needs pairs, and there are none" in result.stderr
    assert not (place / "runs" / "latest" / "sft").exists()
