from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.config import load_config
from aegis.tune import study as module
from aegis.tune.report import describe, result_of, setting_rows, summary, write_results
from aegis.tune.space import read_plan
from aegis.tune.study import StudyWorkers, prepare
from tests.tune.studies import config_in, quick_run, write_study


@pytest.fixture
def workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> StudyWorkers:
    monkeypatch.setattr(module, "run_trial", quick_run)
    monkeypatch.setattr(module, "_LOOK_S", 0.05)
    pareto = getattr(request, "param", False)
    plan = read_plan(write_study(tmp_path))
    return StudyWorkers(prepare(plan, config_in(tmp_path), pareto=pareto))


def test_the_best_settings_can_be_read_again(workers: StudyWorkers, tmp_path: Path) -> None:
    from aegis.cli.options import tuned_settings

    workers.run(6)
    folder, config = workers.tuning.folder, workers.tuning.config
    result = write_results(folder, workers.study, config)
    assert result
    raw = json.loads((folder / "optimal_hyperparameters.json").read_text())
    values = [trial.value or 0.0 for trial in workers.study.get_trials()]
    assert raw["value"] == max(values) == pytest.approx(workers.study.best_value)
    assert raw["trials"]["complete"] == 6
    (tmp_path / "c.yaml").write_text("{}")
    found = folder / "optimal_hyperparameters.json"
    tuned = load_config(tmp_path / "c.yaml", tuned_settings(found))
    assert tuned.train.lr == workers.study.best_params["train.lr"]
    assert tuned.model.lora.rank == workers.study.best_params["model.lora.rank"]


def test_the_summary_has_every_setting_with_its_change(workers: StudyWorkers) -> None:
    workers.run(4)
    result = result_of(workers.study, workers.tuning.config)
    assert result
    (lr, rank) = setting_rows(result)
    best = workers.study.best_params["train.lr"]
    assert lr[0] == "train.lr"
    assert lr[3] == f"{100 * (best / 3e-4 - 1):+.1f} %"
    assert rank[1] == "16"
    text = summary(result, workers.tuning.folder)
    assert "10 · normalised_loss + 2 · stability" in text
    assert "4 complete" in text
    assert "Pareto" not in text


def test_before_a_result_there_is_none(workers: StudyWorkers) -> None:
    assert write_results(workers.tuning.folder, workers.study, workers.tuning.config) is None
    assert describe(workers.study) == "no result yet, 0 running, 0 pruned, 0 failed"


@pytest.mark.parametrize("workers", [True], indirect=True)
def test_a_pareto_studys_front_is_in_the_results(workers: StudyWorkers) -> None:
    workers.run(5)
    result = write_results(workers.tuning.folder, workers.study, workers.tuning.config)
    assert result
    assert {row["trial"] for row in result.front} == {t.number for t in workers.study.best_trials}
    assert "Pareto front" in (workers.tuning.folder / "summary.md").read_text()
