from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from aegis.errors import ArtifactError, BadInputError
from aegis.runs.process import identify, this_process
from aegis.runs.record import Session
from aegis.runs.supervisor import ASK, LOG, System
from aegis.web.run_control import resume_run, stop_run
from tests.runs.conftest import gone
from tests.web.runs import finish, new_run


class Machine:
    """Notes what is sent and started."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.started: list[Any] = []
        self.system = System(
            send=lambda *sent: self.sent.append(sent),
            start=lambda *started: self.started.append(started),  # type: ignore[arg-type]
        )


def at_work(session: Session, *, alive: bool) -> None:
    session.process = this_process() if alive else gone()
    session.stages[1].state, session.stage = "running", "train"
    session.command = {"argv": ["run", "x.yaml", "--no-auto-resume"], "cwd": str(session.folder)}
    session.save()


def test_a_stop_is_the_signal_that_runs_heed(runs: Path) -> None:
    session, machine = new_run(runs), Machine()
    at_work(session, alive=True)
    stop_run(session.folder, machine.system)
    assert machine.sent == [(this_process().pid, ASK)]
    with pytest.raises(BadInputError, match="running already"):
        resume_run(session.folder, machine.system)
    assert machine.started == []


def test_a_real_process_gets_it(runs: Path) -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    session = new_run(runs)
    at_work(session, alive=True)
    session.process = identify(process.pid)
    session.save()
    stop_run(session.folder, System())
    assert process.wait(timeout=20) == -ASK


def test_going_on_is_the_command_that_began_it(runs: Path) -> None:
    session, machine = new_run(runs), Machine()
    at_work(session, alive=False)
    with pytest.raises(BadInputError, match="nothing to stop"):
        stop_run(session.folder, machine.system)
    resume_run(session.folder, machine.system)
    command = [sys.executable, "-m", "aegis", "run", "x.yaml"]
    assert machine.started == [(command, session.folder, session.folder / LOG)]


def test_what_is_finished_or_unreadable_is_left_alone(runs: Path) -> None:
    session, machine = new_run(runs), Machine()
    finish(session)
    with pytest.raises(BadInputError, match="finished"):
        resume_run(session.folder, machine.system)
    for act in (stop_run, resume_run):
        with pytest.raises(ArtifactError):
            act(runs / "none", machine.system)
    assert machine.sent == machine.started == []


def test_the_page_offers_what_can_be_done_and_says_what_cannot(
    browser: TestClient, runs: Path
) -> None:
    session, own = new_run(runs), {"origin": "http://127.0.0.1:8080"}
    path = f"/ui/runs/{session.session_id}"
    at_work(session, alive=False)
    assert f'action="{path}/resume"' in browser.get(path).text
    answer = browser.post(f"{path}/stop", headers=own)
    assert (answer.status_code, "nothing to stop" in answer.text) == (409, True)
    at_work(session, alive=True)
    assert f'action="{path}/stop"' in browser.get(path).text
    assert browser.post(f"{path}/burn", headers=own).status_code == 404
    assert browser.post(f"{path}/stop").status_code == 403
    assert browser.get(f"{path}/report").status_code == 404
    (session.folder / "report.html").write_text("<script>1</script>")
    given = browser.get(f"{path}/report")
    assert given.headers["content-disposition"].startswith("attachment")
    assert given.text == "<script>1</script>"
