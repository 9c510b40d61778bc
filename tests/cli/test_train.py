from __future__ import annotations

from pathlib import Path

import pytest

from aegis.cli.train import TrainingStep, train
from aegis.errors import BadInputError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text("runs: runs\n", encoding="utf-8")
    return path


def test_a_plan_and_a_dry_run_are_two_things(config: Path) -> None:
    with pytest.raises(BadInputError, match="either --plan or --dry-run, and not both"):
        train(TrainingStep.ppo, config, plan=True, dry_run=True)


@pytest.mark.parametrize("algorithm", ["sft", "dpo"])
def test_no_reward_model_where_none_is_used(config: Path, algorithm: str) -> None:
    with pytest.raises(BadInputError, match="uses no reward model; set it to ppo, grpo or rloo"):
        train(TrainingStep.reward, config, [f"train.algorithm={algorithm}"])


def test_a_plan_tells_of_missing_data_first(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(*_: object, **__: object) -> None:
        raise AssertionError("the base is looked at before the data")

    monkeypatch.setattr("aegis.model.base.resolve_base", resolved)
    for setting in ("data.records=[none.jsonl]", "train.datasets=[{path: none.jsonl, weight: 1}]"):
        with pytest.raises(BadInputError, match=r"none\.jsonl"):
            train(TrainingStep.sft, config, [setting], plan=True)
