"""The process of a trial is watched, limited and ended; what it runs is a stand-in here, and the
real thing in tests/e2e/test_tune.py."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from aegis.errors import StoppedError
from aegis.runs.events import Metrics
from aegis.tune import trial as module
from aegis.tune.trial import TrialError, TrialLimits, run_trial, session_of
from tests.tune.studies import config_in

CHILD = """
import os, signal, sys, time
from pathlib import Path
from aegis.runs.events import Metrics, append_event
folder = Path(sys.argv[1])
session = folder / "session"
(session / "checkpoints").mkdir(parents=True, exist_ok=True)
(folder / "pid").write_text(str(os.getpid()))
for step in (1, 2):
    append_event(session, Metrics(training="sft", step=step, steps=2, values={"loss": 1.0 / step}))
(folder / "session.txt").write_text(str(session))
def saved(*_):
    (folder / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, saved)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script of the process that stands in for a training; tests add what it does."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    monkeypatch.setattr(module, "_COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(module, "_POLL_S", 0.02)
    return script


def run(tmp_path: Path, limits: TrialLimits | None = None, **named: object) -> Path:
    config = config_in(tmp_path)
    return run_trial(tmp_path / "7", config, "sft", limits or TrialLimits(60), **named)  # type: ignore[arg-type]


def ended(tmp_path: Path) -> bool:
    return not psutil.pid_exists(int((tmp_path / "7" / "pid").read_text()))


def test_a_trial_that_ends_well_gives_its_session_and_each_measurement_once(
    tmp_path: Path, child: Path
) -> None:
    measured: list[Metrics] = []
    session = run(tmp_path, on_metrics=measured.append)
    assert session == session_of(tmp_path / "7") == tmp_path / "7" / "session"
    assert [event.step for event in measured] == [1, 2]
    assert (tmp_path / "7" / "config.yaml").is_file()


def test_the_last_line_of_the_log_says_why_a_trial_failed(tmp_path: Path, child: Path) -> None:
    child.write_text(CHILD + "sys.exit('loss nan must be finite')")
    with pytest.raises(TrialError, match="loss nan must be finite"):
        run(tmp_path)
    assert "loss nan" in (tmp_path / "7" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("limits", "message"),
    [(TrialLimits(1.5), "timed out after 1.5 s"), (TrialLimits(60, 0.001), "more than 0.001 GiB")],
)
def test_a_trial_that_uses_too_much_is_ended(
    tmp_path: Path, child: Path, limits: TrialLimits, message: str
) -> None:
    child.write_text(CHILD + "time.sleep(60)")
    with pytest.raises(TrialError, match=message):
        run(tmp_path, limits)


def test_a_pruned_trial_ends_at_once_and_leaves_no_snapshots(tmp_path: Path, child: Path) -> None:
    child.write_text(CHILD + "time.sleep(60)")

    def prune(_: Metrics) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, on_metrics=prune)
    assert ended(tmp_path)
    assert not (tmp_path / "7" / "saved").exists()
    assert not (tmp_path / "7" / "session" / "checkpoints").exists()


def test_a_stopped_trial_saves_itself_first(tmp_path: Path, child: Path) -> None:
    child.write_text(CHILD + "(folder / 'ready').touch()\ntime.sleep(60)")

    def check() -> None:
        if (tmp_path / "7" / "ready").exists():
            raise StoppedError("stop")

    with pytest.raises(StoppedError):
        run(tmp_path, check=check)
    assert ended(tmp_path)
    assert (tmp_path / "7" / "saved").exists()
    assert (tmp_path / "7" / "session" / "checkpoints").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_training_ends_when_whoever_started_it_is_gone(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(
        "import signal, sys, threading, time\nfrom pathlib import Path\n"
        "from aegis.tune.trial import _stop_with_parent\n"
        f"saved = Path({str(tmp_path / 'saved')!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (saved.touch(), sys.exit()))\n"
        "threading.Thread(target=_stop_with_parent, daemon=True).start()\n"
        f"Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    starter = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, sys.argv[1]], stdin=subprocess.PIPE)\n"
        "time.sleep(60)\n"
    )
    parent = psutil.Popen([sys.executable, "-c", starter, str(script)])
    wait_for(tmp_path / "ready")
    parent.kill()
    parent.wait()
    wait_for(tmp_path / "saved")


def wait_for(path: Path, limit_s: float = 30) -> None:
    begun = time.monotonic()
    while not path.exists():
        assert time.monotonic() - begun < limit_s, path
        time.sleep(0.05)
