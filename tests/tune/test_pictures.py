from __future__ import annotations

from pathlib import Path

import pytest

from aegis.tune import study as module
from aegis.tune.pictures import write_report
from aegis.tune.report import result_of
from aegis.tune.space import read_plan
from aegis.tune.study import StudyWorkers, prepare
from tests.tune.studies import config_in, quick_run, write_study


@pytest.mark.parametrize(
    ("pareto", "trials", "images"), [(False, 5, 4), (True, 5, 9), (False, 1, 0)]
)
def test_the_report_is_one_file_with_optunas_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pareto: bool, trials: int, images: int
) -> None:
    monkeypatch.setattr(module, "run_trial", quick_run)
    monkeypatch.setattr(module, "_LOOK_S", 0.05)
    plan = read_plan(write_study(tmp_path))
    workers = StudyWorkers(prepare(plan, config_in(tmp_path), pareto=pareto))
    workers.run(trials)
    result = result_of(workers.study, workers.tuning.config)
    assert result
    write_report(workers.tuning.folder, workers.study, result)
    text = (workers.tuning.folder / "report.html").read_text()
    assert text.count("data:image/png;base64,") + text.count("Not drawn") == max(images, 0)
    assert ("Not drawn" not in text) or pareto  # stability is the same in all of them
    assert "train.lr" in text
    assert "http" not in text
    assert "<script" not in text
