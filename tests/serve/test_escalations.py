from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.errors import BadInputError, DiskFullError
from aegis.serve import escalations
from aegis.serve.errors import to_rejection
from aegis.serve.escalations import CaseQueue, QueueBusyError, QueueGoneError


def test_cases_survive_a_kill(tmp_path: Path) -> None:
    opened = (
        "import os, sys; from pathlib import Path; from aegis.serve.escalations import CaseQueue; "
        "queue = CaseQueue(Path(sys.argv[1])); "
        "queue.open('ab' * 16, owner='', user='', query='Pay it?', "
        "probabilities=(0.1, 0.7, 0.1, 0.1)); "
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", opened, str(tmp_path / "cases.db")], check=False)
    assert killed.returncode != 0
    with contextlib.closing(CaseQueue(tmp_path / "cases.db")) as cases:
        assert cases.get("ab" * 16).query == "Pay it?"


def make(path: Path) -> CaseQueue:
    queue = CaseQueue(path)
    queue.open("ab" * 16, owner="", user="", query="Pay it?", probabilities=(0.1, 0.7, 0.1, 0.1))
    return queue


def test_a_full_disk_leaves_the_case_open_and_is_told(tmp_path: Path) -> None:
    with contextlib.closing(make(tmp_path / "cases.db")) as queue:
        pages = queue._database.execute("PRAGMA page_count").fetchone()[0]
        queue._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(DiskFullError, match="the disk is full") as full:
            queue.resolve("ab" * 16, "No. " * 5000, reviewer="r")
        rejection = to_rejection(full.value)
        assert (rejection.status_code, rejection.code) == (507, "disk_full")
        assert str(tmp_path) not in rejection.detail
        assert queue.get("ab" * 16).answer is None
        queue._database.execute("PRAGMA max_page_count = 100000")
        assert queue.resolve("ab" * 16, "No. " * 5000, reviewer="r").answer


def test_a_good_file_is_never_called_no_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cases.db"
    make(path).close()
    before = path.read_bytes()
    grow = "CREATE TABLE more (a); INSERT INTO more VALUES (zeroblob(100000));"
    monkeypatch.setattr(escalations, "_SCHEMA", f"PRAGMA max_page_count = 1; {grow}")
    with pytest.raises(DiskFullError, match="the disk is full"):
        CaseQueue(path)
    monkeypatch.undo()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(escalations, "_WAIT_S", 0.01)
        with contextlib.closing(CaseQueue(path)) as queue, pytest.raises(QueueBusyError) as busy:
            queue.resolve("ab" * 16, "No.", reviewer="r")
        assert to_rejection(busy.value).status_code == 503
    with contextlib.closing(CaseQueue(path)) as queue:
        assert queue.get("ab" * 16).answer is None
    assert before[:16] == path.read_bytes()[:16]
    for damage in (b"no database " * 500, before[:5000] + b"Z" * 9000):
        path.write_bytes(damage)
        for writable in (True, False):
            with pytest.raises(BadInputError, match="is no escalation queue, or a damaged one"):
                CaseQueue(path, writable=writable).list()


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy.db"))
    path.with_name("copy.db").replace(path)


GONE: dict[str, Callable[[Path], object]] = {
    "moved": lambda path: path.rename(path.with_name("moved.db")),
    "removed": Path.unlink,
    "replaced": replace,
    "emptied": lambda path: path.write_bytes(b""),
    "its log removed": lambda path: path.with_name("cases.db-wal").unlink(),
    "its folder moved": lambda path: path.parent.rename(path.parent.with_name("moved")),
}


@pytest.mark.parametrize("how", GONE)
def test_nothing_is_written_to_a_queue_that_others_do_not_find(tmp_path: Path, how: str) -> None:
    path = tmp_path / "home" / "cases.db"
    with contextlib.closing(make(path)) as queue:
        GONE[how](path)
        with pytest.raises(QueueGoneError, match=r"cases\.db: was moved") as gone:
            queue.open("cd" * 16, owner="", user="", query="?", probabilities=(1.0, 0, 0, 0))
        with pytest.raises(QueueGoneError):
            queue.resolve("ab" * 16, "No.", reviewer="r")
        rejection = to_rejection(gone.value)
        assert (rejection.status_code, str(tmp_path) in rejection.detail) == (503, False)


def test_a_queue_stays_in_place_while_others_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "cases.db"
    make(path).close()
    with contextlib.closing(CaseQueue(path)) as queue:
        for number in range(3):
            with contextlib.closing(CaseQueue(path, writable=number % 2 == 0)) as other:
                assert len(other.list()) == number + 1
            with contextlib.closing(sqlite3.connect(path)) as other:
                other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            queue.open(f"{number:032}", owner="", user="", query="?", probabilities=(1.0, 0, 0, 0))
        assert queue.resolve("ab" * 16, "No.", reviewer="r").answer == "No."
