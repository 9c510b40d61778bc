from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import typer

from aegis.cli import watch as verb
from aegis.errors import BadInputError
from aegis.runs.health import RunStatus
from aegis.runs.process import this_process
from aegis.runs.record import LATEST, Session, load, open_session
from aegis.runs.supervisor import (
    System,
)
from tests.runs.conftest import STAGES, gone, set_state


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return open_session(tmp_path / "runs", config_fingerprint="a", resume=True, stages=STAGES)


def watched(run: Path, **changes: object) -> RunStatus | None:
    defaults = {
        "check_only": False,
        "auto_resume": False,
        "interval_s": 60,
        "silence_s": 300,
        "max_resumes": 5,
        "notify": None,
        "system": System(),
    }
    return verb.wait_for_end(run, **{**defaults, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("state", "code"), [("running", 75), ("failed", 1), ("completed", 0)])
def test_check_only_leaves_with_the_exit_code(
    session: Session, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    set_state(session, state, process=gone(), error="no luck")
    if state == "completed":
        session.stage = "completed"
        session.save()
    for as_json in (False, True):
        with pytest.raises(typer.Exit) as exit_:
            verb.watch(session.folder.parent / LATEST, check_only=True, json=as_json)
        assert exit_.value.exit_code == code
    line, *rest = capsys.readouterr().out.splitlines()
    assert line.startswith(session.session_id)
    assert json.loads("\n".join(rest))["run"] == str(session.folder)


def test_the_verb_says_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such run"):
        watched(tmp_path / "runs" / "latest", check_only=True)
    with pytest.raises(BadInputError, match="--check-only looks and does nothing"):
        watched(tmp_path, check_only=True, auto_resume=True)
    (tmp_path / "train.log").write_text("step 1/9\n")
    with pytest.raises(BadInputError, match="a foreign run can be watched and never resumed"):
        watched(tmp_path, auto_resume=True)


def test_ctrl_c_ends_the_watching(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    set_state(session, "running", process=this_process())

    def sleep(_: float) -> None:
        raise KeyboardInterrupt

    assert watched(session.folder, system=System(sleep=sleep)) is None
    assert watched(session.folder, system=System(sleep=sleep), auto_resume=True) is None
    assert "watching ended; the run is left as it is" in capsys.readouterr().err
    assert load(session.folder).process == this_process()


@pytest.mark.skipif(os.name == "nt", reason="written for a POSIX shell")
def test_the_users_command_finds_the_look_in_its_environment(tmp_path: Path) -> None:
    found = RunStatus(run=str(tmp_path / "a b"), state="failed", evidence="why")
    command = f'echo "$AEGIS_RUN:$AEGIS_STATE:$AEGIS_MESSAGE" > {tmp_path / "told"}'
    said: list[str] = []
    verb.alert(found, command, said.append)
    assert (tmp_path / "told").read_text() == f"{tmp_path / 'a b'}:failed:a b failed: why\n"
    assert said == ["--notify: told of failed"]


def test_a_terminal_rings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    verb.alert(RunStatus(run="a", state="failed", evidence="b"), None, lambda _: None)
    assert capsys.readouterr().out == "\a"
