from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from aegis.errors import ArtifactError, BadInputError
from aegis.runs.health import SILENCE_S, configured_silence_s
from aegis.runs.process import Process, this_process
from aegis.runs.record import LATEST, Session
from aegis.storage.lock import only_process
from tests.runs.conftest import STAGES, Time, gone, identity, other_boot, set_state, write_beat


def test_a_living_run_that_beats_is_running(session: Session, hands: Time) -> None:
    set_state(session, "running", process=this_process())
    write_beat(session, count=3, at=hands.wall - 20)
    session.add_snapshot(
        STAGES[2], session.folder / "checkpoints" / "a", step=10, seconds=1.0, size=5
    )
    found = hands.status(session.folder.parent / LATEST)
    assert (found.state, found.stage, found.pid, found.alive) == (
        "running",
        STAGES[2],
        os.getpid(),
        True,
    )
    assert (found.last_snapshot or {})["step"] == 10
    assert found.exit_code == 0
    wanted = "run state stage doing done total pid alive silent_s last_snapshot evidence resumes"
    assert list(found.to_json()) == wanted.split()
    json.dumps(found.to_json(), allow_nan=False)


def test_what_it_does_is_told_unless_an_earlier_process_wrote_it(
    session: Session, hands: Time
) -> None:
    set_state(session, "running", process=this_process())
    write_beat(session, count=3, at=hands.wall + 1)
    found = hands.status(session.folder)
    assert (found.doing, found.done, found.total) == ("training", 12, 40)
    write_beat(session, count=3, at=this_process().started - 50)
    assert hands.status(session.folder).doing is None


def test_finished_failed_and_stopped(session: Session, hands: Time) -> None:
    set_state(session, "failed", process=gone(), error="no\nluck")
    found = hands.status(session.folder)
    assert (found.state, found.evidence, found.exit_code) == (
        "failed",
        f"{STAGES[2]} failed: no luck",
        1,
    )
    set_state(session, "stopped", process=gone())
    found = hands.status(session.folder)
    assert (found.state, found.exit_code, found.rebooted) == ("stopped", 75, False)
    set_state(session, "stopped", process=other_boot())
    assert hands.status(session.folder).rebooted
    session.stage = "completed"
    session.save()
    found = hands.status(session.folder)
    assert (found.state, found.exit_code) == ("finished", 0)


@pytest.mark.parametrize(
    ("process", "evidence"),
    [
        (gone(), "gone without a word"),
        (other_boot(), "started anew"),
        (None, "no process is known"),
    ],
)
def test_a_run_without_its_process_is_dead(
    session: Session, hands: Time, process: Process | None, evidence: str
) -> None:
    set_state(session, "running", process=process)
    found = hands.status(session.folder)
    assert (found.state, found.alive, found.exit_code) == ("dead", False, 75)
    assert evidence in found.evidence


def test_a_dead_child_process_is_seen(
    session: Session, hands: Time, sleeper: subprocess.Popen[bytes]
) -> None:
    set_state(session, "running", process=identity(sleeper))
    assert hands.status(session.folder).state == "running"
    sleeper.kill()
    sleeper.wait()
    assert hands.status(session.folder).state == "dead"


def test_a_held_lock_says_alive_where_the_start_time_does_not_fit(
    session: Session, hands: Time
) -> None:
    set_state(session, "running", process=gone())
    with only_process(session.folder):
        assert hands.status(session.folder).state == "running"
    assert hands.status(session.folder).state == "dead"


def test_the_first_look_goes_by_the_wall_clock(session: Session, hands: Time) -> None:
    set_state(session, "running", process=this_process())
    write_beat(session, count=3, at=hands.wall)
    hands.wall += 301
    found = hands.status(session.folder)
    assert (found.state, found.exit_code, found.watched_s) == ("hung", 75, 0)
    hands.wall -= 100_000
    found = hands.status(session.folder)
    assert (found.state, found.silent_s) == ("running", 0)


def test_later_looks_go_by_the_count_and_the_own_clock(session: Session, hands: Time) -> None:
    set_state(session, "running", process=this_process())
    write_beat(session, count=3, at=hands.wall)
    found = hands.status(session.folder)
    hands.wall += 1_000_000
    found = hands.status(session.folder, found)
    assert found.state == "running"
    hands.wall -= 2_000_000
    hands.monotonic += 301
    found = hands.status(session.folder, found)
    assert (found.state, found.watched_s) == ("hung", 301)
    write_beat(session, count=4, at=5.0)  # by a clock that was set back to 1970
    found = hands.status(session.folder, found)
    assert (found.state, found.silent_s) == ("running", 0)


def test_the_silence_allowed_is_the_runs_own(session: Session) -> None:
    assert configured_silence_s(session) == SILENCE_S
    for silence_s in (77, 88.5):
        session.write_settings(f"durable: {{silence_s: {silence_s:.1f}}}\n")
        assert configured_silence_s(session) == silence_s
    session.write_settings("of a later: version\n")
    assert configured_silence_s(session) == SILENCE_S


def test_a_missing_or_damaged_run_is_told(tmp_path: Path, session: Session, hands: Time) -> None:
    with pytest.raises(BadInputError, match="no such run; give a session such as runs/latest"):
        hands.status(tmp_path / "nothing")
    with pytest.raises(BadInputError, match="neither a session nor a log"):
        hands.status(tmp_path)
    for file in session.folder.iterdir():
        file.write_text("{}")
    with pytest.raises(ArtifactError, match="no readable session record"):
        hands.status(session.folder)
