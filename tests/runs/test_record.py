from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aegis.errors import ArtifactError
from aegis.runs.process import Process, is_alive, this_process
from aegis.runs.record import DATABASE, LATEST, RECORD, load, locate, newest, open_session


def test_a_session_is_found_again_by_its_config(tmp_path: Path) -> None:
    first = open_session(tmp_path, config_fingerprint="a", resume=True)
    other = open_session(tmp_path, config_fingerprint="b", resume=True)
    again = open_session(tmp_path, config_fingerprint="a", resume=True)
    assert again.session_id == first.session_id != other.session_id
    assert (tmp_path / LATEST).resolve() == first.folder
    anew = open_session(tmp_path, config_fingerprint="a", resume=False)
    assert anew.session_id != first.session_id
    assert newest(tmp_path, config_fingerprint="a") == anew


def test_the_name_says_when(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    assert session.session_id.startswith("aegis_v2_2")
    assert session.stage == "init"
    assert [stage.state for stage in session.stages] == ["pending"] * 4


def test_latest_may_be_a_file(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    (tmp_path / LATEST).unlink()
    (tmp_path / LATEST).write_text(session.session_id)
    assert load(locate(tmp_path / LATEST)).session_id == session.session_id


@pytest.mark.parametrize("text", ["", "{}", '{"stages": 3}'])
def test_a_damaged_record_is_told_and_passed_over(tmp_path: Path, text: str) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    (session.folder / RECORD).write_text(text)
    assert load(session.folder).session_id == session.session_id  # the database says the same
    (session.folder / DATABASE).write_bytes(b"not a database at all" * 100)
    with pytest.raises(ArtifactError, match="no readable session record"):
        load(session.folder)
    assert newest(tmp_path) is None


def test_a_damaged_database_falls_back_to_the_text_and_is_made_anew(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    (session.folder / DATABASE).write_bytes(b"not a database at all" * 100)
    again = load(session.folder)
    assert again.session_id == session.session_id
    again.take_over({})
    again.stage = "completed"
    again.save()
    assert load(session.folder).finished
    assert (session.folder / f"{DATABASE}.damaged").exists()


def test_a_stale_running_is_recognised_and_taken_over(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    session.stages[0].state, session.process = "running", Process(2**22 + 5, 1.0, "an earlier boot")
    session.save()
    session.begin_attempt(session.stages[0].name)
    found = load(session.folder)
    assert not found.alive
    message = found.take_over({"argv": ["run", "x.yaml"], "cwd": "."})
    assert message is not None
    assert "ended in the middle of deep_research_data" in message
    again = load(session.folder)
    assert again.alive
    assert again.process == this_process()
    assert again.stages[0].state == "stopped"
    assert [row["outcome"] for row in again.rows("attempts")] == ["cut off"]
    assert again.rows("events")[-1]["kind"] == "taken_over"
    assert again.take_over({}) is None


def test_a_reused_number_or_another_boot_is_another_process() -> None:
    me = this_process()
    assert is_alive(me)
    assert not is_alive(replace(me, started=me.started - 60))
    assert not is_alive(replace(me, boot="another"))
    assert not is_alive(replace(me, pid=2**22 + 5))


def test_snapshots_and_attempts_are_recorded(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    session.add_snapshot(
        "s", session.folder / "checkpoints" / "s" / "one", step=3, seconds=0.1, size=10
    )
    row = session.rows("snapshots")[0]
    assert (row["stage"], row["path"], row["step"], row["bytes"]) == (
        "s",
        "checkpoints/s/one",
        3,
        10,
    )
    session.end_attempt(session.begin_attempt("s"), "completed")
    assert session.rows("attempts")[0]["outcome"] == "completed"
    with pytest.raises(ValueError, match="no such table"):
        session.rows("stages; DROP TABLE session")
