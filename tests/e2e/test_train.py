"""`aegis train` and `aegis think` on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_run import aegis, own_pairs, own_records


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("training")
    own_records(folder / "own.jsonl")
    own_pairs(folder / "pairs.jsonl")
    (folder / "config.yaml").write_text(
        f"base: {base_folder.as_posix()}\n"
        "threads: 2\n"
        "data:\n"
        "  {seed_records: false, records: [own.jsonl], pairs: [pairs.jsonl],\n"
        "   generate: {samples: 2, max_new_tokens: 4}}\n"
        "train:\n"
        "  {epochs: 1, lr: 1e-3, ppo: {updates: 1, batch: 4, section_tokens: 4, final_tokens: 6}}\n"
    )
    return folder


def steps(folder: Path) -> dict[str, Any]:
    stages = json.loads(aegis("status", "--json", cwd=folder).stdout)["stages"]
    return {name: found["state"] for stage in stages for name, found in stage["steps"].items()}


def test_a_plan_needs_no_session(place: Path) -> None:
    found = aegis("train", "ppo", "config.yaml", "--plan", "--json", cwd=place)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["fits"] is True
    assert not (place / "runs").exists()


def test_training_goes_as_far_as_asked_and_the_run_goes_on(place: Path) -> None:
    first = aegis("train", "sft", "config.yaml", cwd=place)
    assert first.returncode == 0, first.stderr
    assert "validation_accuracy" in first.stdout
    assert steps(place) == {"sft": "completed"}
    second = aegis("train", "reward", "config.yaml", "--json", cwd=place)
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["steps"]["reward"]["metrics"]["pairs"] > 0
    whole = aegis("run", "config.yaml", cwd=place)
    assert whole.returncode == 0, whole.stderr
    assert steps(place) == {"sft": "completed", "reward": "completed", "ppo": "completed"}
    assert whole.stderr.count("examples, ") == 0  # SFT was not done again
    latest = place / "runs" / "latest"
    assert (latest / "adapter" / "value_head.safetensors").is_file()
    assert (latest / "adapter" / "ppo.png").is_file()

    answer = aegis(
        "think", "How do I bake bread?", "--section-tokens", "4", "--final-tokens", "6", cwd=place
    )
    assert answer.returncode == 0, answer.stderr
    private = aegis(
        "think",
        "How do I bake bread?",
        "--section-tokens",
        "4",
        "--final-tokens",
        "6",
        "--debug-private",
        cwd=place,
    )
    assert private.stdout == answer.stdout
    assert "[private 1] task:" in private.stderr
    assert "[private" not in answer.stderr
    folded = aegis(
        *(
            "think",
            "How do I bake bread?",
            "--model",
            "runs/latest/model",
            "--paths",
            "2",
            "--json",
        ),
        *("--section-tokens", "4", "--final-tokens", "6"),
        cwd=place,
    )
    assert folded.returncode == 0, folded.stderr
    assert set(json.loads(folded.stdout)) == {
        "final",
        "decision",
        "probabilities",
        "rule",
        "escalated",
        "outcome",
        "score",
    }


def test_a_dry_run_trains_one_step_and_leaves_nothing(place: Path) -> None:
    before = sorted(path.name for path in place.iterdir())
    found = aegis("train", "ppo", "config.yaml", "--dry-run", cwd=place)
    assert found.returncode == 0, found.stderr
    assert '"metrics"' in found.stdout
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reward", "config.yaml", "--set", "train.algorithm=sft"], "uses no reward model"),
        (["sft", "config.yaml", "--plan", "--dry-run"], "either --plan or --dry-run"),
        (["ppo", "config.yaml", "--set", "train.ppo.lam=1.5"], "train.ppo.lam"),
        (["ppo", "config.yaml", "--set", "train.ppo.batch=5"], "multiple of minibatches"),
        (
            ["ppo", "config.yaml", "--set", "train.reward.lora.layers=[0.99, 1.0]"],
            "train.reward.lora",
        ),
    ],
)
def test_bad_input_is_told_before_anything_is_trained(
    place: Path, arguments: list[str], message: str
) -> None:
    found = aegis("train", *arguments, cwd=place)
    assert (found.returncode, message in found.stderr) == (2, True), found.stderr
