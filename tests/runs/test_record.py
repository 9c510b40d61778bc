from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from aegis.config import Config, dump_yaml, load_config, parse_config
from aegis.errors import ArtifactError
from aegis.runs import record
from aegis.runs.events import EVENTS, TakenOver, append_event, read_events
from aegis.runs.health import read_status
from aegis.runs.process import Process, this_process
from aegis.runs.record import (
    CONFIG,
    DATABASE,
    LATEST,
    RECORD,
    load,
    locate,
    newest,
    open_session,
    session_folders,
)


def test_a_session_is_found_again_by_its_config(tmp_path: Path) -> None:
    first = open_session(tmp_path, config_fingerprint="a", resume=True)
    other = open_session(tmp_path, config_fingerprint="b", resume=True)
    again = open_session(tmp_path, config_fingerprint="a", resume=True)
    assert again.session_id == first.session_id != other.session_id
    assert (tmp_path / LATEST).resolve() == first.folder
    anew = open_session(tmp_path, config_fingerprint="a", resume=False)
    assert anew.session_id != first.session_id
    assert newest(tmp_path, config_fingerprint="a") == anew


STAGES = ("one", "two")


def test_the_name_says_when_in_utc_and_the_stages_are_the_runs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "datetime", at(datetime(2026, 1, 31, 23, 59, 58, tzinfo=UTC)))
    session = open_session(tmp_path, config_fingerprint="a", resume=True, stages=STAGES)
    assert session.session_id == "aegis_v2_20260131_235958"
    assert session.created == "2026-01-31T23:59:58.000000Z"
    assert session.stage == "init"
    assert [(stage.name, stage.state) for stage in load(session.folder).stages] == [
        ("one", "pending"),
        ("two", "pending"),
    ]


def test_a_session_taken_up_with_other_stages_has_these(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True, stages=STAGES)
    session.stages[1].state = "completed"
    session.save()
    again = open_session(tmp_path, config_fingerprint="a", resume=True, stages=("zero", "two"))
    assert again.session_id == session.session_id
    again.take_over({})
    assert [(stage.name, stage.state) for stage in load(session.folder).stages] == [
        ("zero", "pending"),
        ("two", "completed"),
    ]


def at(moment: datetime) -> type[datetime]:
    """A clock that stands."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return moment.astimezone(tz)

    return Clock


def test_the_newest_is_the_one_created_last_whatever_the_clock_and_the_names_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, moment = None, datetime(2026, 1, 31, 12, tzinfo=UTC)
    for back in (timedelta(), timedelta(), timedelta(hours=9)):
        monkeypatch.setattr(record, "datetime", at(moment - back))
        anew = open_session(tmp_path, config_fingerprint="a", resume=False)
        monkeypatch.undo()
        assert newest(tmp_path, config_fingerprint="a") == anew != first
        assert session_folders(tmp_path)[0] == tmp_path / anew.session_id
        first = anew


def test_the_settings_lie_beside_the_record(tmp_path: Path) -> None:
    config = parse_config(
        {"base": "1e4", "seed": 2**62, "train": {"lr": 1e-7, "datasets": [{"path": "雪.jsonl"}]}},
        where="t",
    )
    shared = {"config_fingerprint": "a", "resume": True}
    session = open_session(tmp_path, **shared, settings=dump_yaml(config))
    assert load_config(session.folder / CONFIG) == config
    open_session(tmp_path, **shared, settings=dump_yaml(Config()))
    assert load_config(session.folder / CONFIG) == config  # until the session is taken over
    session.take_over({}, settings=dump_yaml(Config()))
    assert load_config(session.folder / CONFIG) == Config()
    (session.folder / CONFIG).write_bytes(b"\xff\xfe damaged")
    session.take_over({}, settings=dump_yaml(Config()))
    assert load_config(session.folder / CONFIG) == Config()


OLD_RECORD = """{
  "session_id": "aegis_v2_20260201_080000", "folder": null, "config_fingerprint": "a",
  "stage": "so8t_ppo_training", "created": "2026-02-01T08:00:00+09:00",
  "updated": "2026-02-01T08:10:00+09:00", "process": {"pid": 4194309, "started": 1.0, "boot": "x"},
  "command": {"argv": ["run", "x.yaml"], "cwd": "."},
  "stages": [
    {"name": "deep_research_data", "state": "completed", "started": "2026-02-01T08:00:01+09:00",
     "seconds": 2.5, "skipped": false, "attempts": 1, "artifacts": {"raw": "raw"}, "steps": {},
     "error": null},
    {"name": "so8t_ppo_training", "state": "running", "started": null, "seconds": null,
     "skipped": false, "attempts": 1, "artifacts": {}, "steps": {}, "error": null}
  ]
}"""


@pytest.mark.parametrize("database", [False, True])
def test_a_run_of_an_earlier_aegis_is_read_and_taken_up(tmp_path: Path, database: bool) -> None:
    old = tmp_path / "aegis_v2_20260201_080000"
    old.mkdir()
    (old / RECORD).write_text(OLD_RECORD)
    if database:
        with contextlib.closing(sqlite3.connect(old / DATABASE)) as connection, connection:
            connection.execute("CREATE TABLE session (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, at TEXT NOT NULL)")
            rows = [(key, json.dumps(value)) for key, value in json.loads(OLD_RECORD).items()]
            connection.executemany("INSERT INTO session VALUES (?, ?)", rows)
            for table in ("attempts", "snapshots"):
                connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, outcome TEXT)")
    found = load(old)
    assert (found.version, found.number, found.stages[0].seconds) == (1, 0, 2.5)
    earlier = tmp_path / "aegis_v2_20260201_020000"  # two hours later, by a clock in UTC
    earlier.mkdir()
    (earlier / RECORD).write_text(
        OLD_RECORD.replace("2026-02-01T08:00:00+09:00", "2026-02-01T01:00:00+00:00")
    )
    assert newest(tmp_path, config_fingerprint="a") == load(earlier)
    assert found.take_over({}, settings="seed: 1\n") is not None
    again = load(old)
    assert (again.version, again.stages[1].state) == (record.VERSION, "stopped")


def test_a_record_of_a_later_aegis_is_refused_in_one_line(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    with contextlib.closing(sqlite3.connect(session.folder / DATABASE)) as connection, connection:
        connection.execute("UPDATE session SET value = '3' WHERE key = 'version'")
    with pytest.raises(ArtifactError, match="written by a later AEGIS; update this one"):
        load(session.folder)


def test_latest_may_be_a_file(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    (tmp_path / LATEST).unlink()
    (tmp_path / LATEST).write_text(session.session_id)
    assert load(locate(tmp_path / LATEST)).session_id == session.session_id
    (tmp_path / LATEST).write_bytes(b"\xff\x00 of another time")
    assert locate(tmp_path / LATEST / "model") == tmp_path / session.session_id / "model"
    (tmp_path / LATEST).unlink()
    assert locate(tmp_path / LATEST) == tmp_path / session.session_id
    assert locate(tmp_path / "other" / LATEST) == tmp_path / "other" / LATEST


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"stages": 3}'])
def test_a_damaged_record_is_told_and_passed_over(tmp_path: Path, text: str) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    (session.folder / RECORD).write_text(text)
    assert load(session.folder).session_id == session.session_id  # the database says the same
    (session.folder / DATABASE).write_bytes(b"not a database at all" * 100)
    with pytest.raises(ArtifactError, match="no readable session record"):
        load(session.folder)
    assert newest(tmp_path) is None


def tear(path: Path) -> None:
    """Overwrite the middle of the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = b"\x5a" * (len(data) // 2 - len(data) // 4)
    path.write_bytes(data)


def make_folder_of(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "random": lambda path: path.write_bytes(os.urandom(5000)),
    "torn": tear,
    "cut": lambda path: os.truncate(path, 5000),
    "another's": lambda path: (
        path.unlink(),
        sqlite3.connect(path).executescript("CREATE TABLE a(b)"),
    ),
    "missing": lambda path: path.unlink(),
    "a folder": make_folder_of,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_whatever_befell_the_database_every_verb_reads_the_text_and_says_so(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True, stages=STAGES)
    session.add_snapshot("one", session.folder / "s", step=3, seconds=0.1, size=10)
    rows = session.rows("snapshots")
    damage(session.folder / DATABASE)
    before = sorted(os.listdir(session.folder))
    again = load(session.folder)
    assert again == session
    assert again.notes[0].startswith(DATABASE)
    assert RECORD in again.notes[0]
    assert again.notes[0] in read_status(session.folder).evidence
    assert again.rows("snapshots") in ([], rows)
    assert sorted(os.listdir(session.folder)) == before  # looking mends nothing
    resumed = open_session(tmp_path, config_fingerprint="a", resume=True, stages=STAGES)
    resumed.take_over({})
    resumed.stage = "completed"
    resumed.save()
    assert load(session.folder).finished
    assert load(session.folder).notes == []
    was_there = DATABASE in before
    assert (session.folder / f"{DATABASE}.damaged").exists() == was_there


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("command", 7),
        ("stages", [{"name": "one", "seconds": "abc"}]),
        ("stages", [{"name": "one", "steps": [1, 2]}]),
        ("process", {"pid": "x", "started": 1.0, "boot": "b"}),
        ("updated", 3),
        ("version", "x"),
    ],
)
def test_a_value_of_a_wrong_type_is_as_no_record(tmp_path: Path, key: str, value: Any) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True, stages=STAGES)
    with contextlib.closing(sqlite3.connect(session.folder / DATABASE)) as database, database:
        row = (json.dumps(value), key)
        database.execute("UPDATE session SET value = ? WHERE key = ?", row)
    again = load(session.folder)
    assert again == session
    assert again.notes[0].startswith(f"{DATABASE} holds no record")
    raw = json.loads((session.folder / RECORD).read_text())
    (session.folder / RECORD).write_text(json.dumps(raw | {key: value}))
    with pytest.raises(ArtifactError, match="no readable session record"):
        load(session.folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with names")
def test_pipes_in_the_place_of_its_files_are_not_waited_for(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    for name in (RECORD, CONFIG, EVENTS):
        (session.folder / name).unlink(missing_ok=True)
        os.mkfifo(session.folder / name)
    again = load(session.folder)
    assert again == session
    assert list(read_events(session.folder, TakenOver)) == []
    again.take_over({}, settings="seed: 1\n")
    assert all((session.folder / name).is_file() for name in (RECORD, CONFIG))
    (session.folder / DATABASE).unlink()
    os.mkfifo(session.folder / DATABASE)
    assert load(session.folder).session_id == session.session_id


def test_folders_in_the_place_of_its_files_are_set_aside(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True, settings="seed: 1\n")
    append_event(session.folder, TakenOver(text="so that there is a file"))
    for name in (DATABASE, CONFIG, EVENTS):
        make_folder_of(session.folder / name)
    again = open_session(tmp_path, config_fingerprint="a", resume=True)
    again.take_over({}, settings="seed: 1\n")
    append_event(again.folder, TakenOver(text="again"))
    for name in (DATABASE, CONFIG, EVENTS):
        assert (session.folder / name).is_file()
        assert (session.folder / f"{name}.damaged").is_dir()


def test_a_folder_in_the_place_of_latest_is_set_aside_and_told(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    for number in ("", "-2"):
        (tmp_path / LATEST).unlink()
        (tmp_path / LATEST).mkdir()
        (tmp_path / LATEST / "mine").touch()
        again = open_session(tmp_path, config_fingerprint="a", resume=True)
        assert (tmp_path / LATEST).resolve() == session.folder
        assert (tmp_path / f"{LATEST}.folder{number}" / "mine").exists()
        assert f"{LATEST}.folder{number}" in again.notes[0]


def test_unfinished_work_that_a_new_session_leaves_is_told(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True)
    assert open_session(tmp_path, config_fingerprint="b", resume=True).notes == []
    (session.folder / "checkpoints" / "train" / "sft").mkdir(parents=True)
    assert (
        session.session_id in open_session(tmp_path, config_fingerprint="c", resume=True).notes[0]
    )
    assert open_session(tmp_path, config_fingerprint="d", resume=False).notes == []
    for name in (DATABASE, RECORD):
        (session.folder / name).write_bytes(b"")
    (note,) = open_session(tmp_path, config_fingerprint="a", resume=True).notes
    assert "no readable session record" in note


def test_a_stale_running_is_recognised_and_taken_over(tmp_path: Path) -> None:
    session = open_session(tmp_path, config_fingerprint="a", resume=True, stages=STAGES)
    session.stages[0].state, session.process = "running", Process(2**22 + 5, 1.0, "an earlier boot")
    session.save()
    session.begin_attempt(session.stages[0].name)
    found = load(session.folder)
    assert not found.alive
    message = found.take_over({"argv": ["run", "x.yaml"], "cwd": "."})
    assert message is not None
    assert "ended in the middle of one" in message
    again = load(session.folder)
    assert again.alive
    assert again.process == this_process()
    assert again.stages[0].state == "stopped"
    assert [row["outcome"] for row in again.rows("attempts")] == ["cut off"]
    assert [event.text for event in read_events(again.folder, TakenOver)] == [message]
    assert again.take_over({}) is None


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
