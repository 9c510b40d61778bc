"""SQLite files are read where nothing may be written, and a full disk is told from damage."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from aegis.errors import BadInputError, DiskFullError
from aegis.runs import database as module
from aegis.runs.database import find_damage, place_explained, reading_from, writing_to

SCHEMA = "CREATE TABLE rows (value TEXT NOT NULL);"


def forbid_writing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have SQLite fail in this folder as it does on a read-only or full file system."""
    opened = module._opened

    def fails_there(path: Path) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        if path.parent == folder:
            error = sqlite3.OperationalError("unable to open database file")
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error
        return opened(path)

    monkeypatch.setattr(module, "_opened", fails_there)


def test_reading_needs_no_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.db"
    with writing_to(path, SCHEMA) as first:
        first.execute("INSERT INTO rows VALUES ('one')")
    with contextlib.closing(sqlite3.connect(path)) as writer:
        writer.execute("INSERT INTO rows VALUES ('two')")
        writer.commit()  # so far in the log beside the file alone
        assert (tmp_path / "a.db-wal").stat().st_size
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        for name in ("a.db", "a.db-wal"):
            shutil.copy(tmp_path / name, elsewhere)
    before = {path.name: path.stat().st_mtime_ns for path in elsewhere.iterdir()}
    forbid_writing(elsewhere, monkeypatch)
    with reading_from(elsewhere / "a.db") as reader:
        assert reader.execute("SELECT value FROM rows").fetchall() == [("one",), ("two",)]
    assert find_damage(elsewhere / "a.db", ["rows"]) == ""
    assert {path.name: path.stat().st_mtime_ns for path in elsewhere.iterdir()} == before
    with pytest.raises(FileNotFoundError), reading_from(tmp_path / "none.db"):
        pass
    assert not (tmp_path / "none.db").exists()


def test_a_full_disk_is_told_from_a_place_that_may_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    schema = f"{SCHEMA} PRAGMA max_page_count = 1; INSERT INTO rows VALUES (zeroblob(100000));"
    with pytest.raises(DiskFullError, match=r"a\.db: the disk is full"), writing_to(path, schema):
        pass
    with writing_to(path, SCHEMA) as intact:
        intact.execute("SELECT 1")
    there = f"{path.as_uri()}?mode=ro"
    read_only = contextlib.closing(sqlite3.connect(there, uri=True))
    refused = pytest.raises(BadInputError, match="where you may write")
    with read_only as database, refused, place_explained(path):
        database.execute("INSERT INTO rows VALUES ('x')")


def test_a_file_that_cannot_grow_on_a_full_disk_is_no_other_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR | 19 << 8
    for free, expected in ((0, DiskFullError), (1 << 30, sqlite3.OperationalError)):
        monkeypatch.setattr(module, "free_space", lambda _, free=free: free)
        with pytest.raises(expected), place_explained(tmp_path / "a.db"):
            raise error


def test_what_cannot_be_read_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"
    with writing_to(path, f"{SCHEMA} INSERT INTO rows VALUES ('one');"):
        pass
    assert find_damage(path, ["rows"]) == ""
    forbid_writing(tmp_path, monkeypatch)
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_damage(path, ["rows"])
