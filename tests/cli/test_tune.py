from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from aegis.cli import main, status, tune
from aegis.cli.options import tuned_settings
from aegis.errors import BadInputError, StoppedError
from aegis.runs.signals import Interrupt
from aegis.tune import study
from aegis.tune.space import read_plan
from tests.tune.studies import config_in, quick_run, write_study


@pytest.mark.parametrize("text", ["7", "25:00", "07:00:00", "seven"])
def test_until_is_a_time_of_day(text: str) -> None:
    with pytest.raises(BadInputError, match="--until must be a time of day"):
        tune._next(text)


def test_until_is_the_next_such_time() -> None:
    for hour in range(24):
        ends = tune._next(f"{hour:02}:30")
        assert timedelta(0) < ends - datetime.now() <= timedelta(days=1)
        assert (ends.hour, ends.minute, ends.second) == (hour, 30, 0)


def test_when_the_time_is_up_the_check_stops() -> None:
    interrupt = Interrupt()
    tune._Check(interrupt, datetime.now() + timedelta(minutes=1))()
    late = tune._Check(interrupt, datetime.now())
    with pytest.raises(StoppedError):
        late()
    assert late.time_is_up
    interrupt.requested = "SIGINT"
    with pytest.raises(StoppedError, match="SIGINT"):
        tune._Check(interrupt, None)()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alpha", "config.yaml"], "no such study; give"),
        (["no.yaml", "config.yaml"], "no.yaml"),
        (["alpha-schedule", "config.yaml", "--until=7"], "time of day"),
        (["alpha-schedule", "config.yaml", "--name=../x"], "--name must be"),
        (["alpha-schedule", "config.yaml", "--storage=x"], "database URL"),
        (["alpha-schedule", "config.yaml", "--trials=0"], "--trials"),
        (["alpha-schedule", "config.yaml", "--set=train.lr=x"], "train.lr"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("seed: 1\n")
    monkeypatch.setattr(sys, "argv", ["aegis", "tune", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(Path().rglob("trials/*"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": 3}', "\x00"])
def test_a_file_without_settings_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(BadInputError, match=r"--set-from .*aegis tune"):
        tuned_settings(tmp_path / "best.json")


def test_status_of_a_study_shows_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "run_trial", quick_run)
    monkeypatch.setattr(study, "_LOOK_S", 0.05)
    plan = read_plan(write_study(tmp_path))
    tuning = study.prepare(plan, config_in(tmp_path))
    study.StudyWorkers(tuning).run(2)
    status.status(tuning.folder, json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["study"] == "mine"
    assert [row["state"] for row in shown["trials"]] == ["complete"] * 2
    status.status(tuning.folder)
    assert "0 running" in capsys.readouterr().out
    (tuning.folder / "study.db").write_text("hello" * 2000)
    with pytest.raises(BadInputError, match="not a database"):
        status.status(tuning.folder)
