"""What a person has to decide: a queue in SQLite that survives restarts, written before the asker
is told of it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from aegis.errors import AegisError, BadInputError
from aegis.storage.files import disk_full_explained, make_folder

FILE = "escalations.db"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS cases (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, opened TEXT NOT NULL, owner TEXT NOT NULL, user TEXT NOT NULL,
    query TEXT NOT NULL, probabilities TEXT NOT NULL, answer TEXT, resolved TEXT, reviewer TEXT);
CREATE INDEX IF NOT EXISTS cases_open ON cases (number) WHERE resolved IS NULL;
"""


class CaseError(AegisError):
    """A case is not there, or was resolved before."""


class NoCaseError(CaseError, BadInputError):
    """There is no such case."""


class ResolvedError(CaseError, BadInputError):
    """The case has its answer already; the first one stands."""


@dataclass(frozen=True)
class Case:
    """A question that a person decides. Times are ISO 8601; `owner` is the id of the asker's
    token."""

    id: str
    opened: str
    owner: str
    user: str
    query: str
    probabilities: tuple[float, ...]
    answer: str | None
    resolved: str | None
    reviewer: str | None


class CaseQueue:
    """The queue. Safe to use from many threads and, for `aegis review`, from another process.

    Raises:
        BadInputError: if the file is no queue.
    """

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self.path, self._lock = path, threading.Lock()
        self._database = sqlite3.connect(
            path, timeout=10, check_same_thread=False, isolation_level=None
        )
        try:
            path.chmod(0o600)  # it holds questions in plain text
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise BadInputError(
                f"{path}: is no escalation queue; move it away or name another with --cases"
            ) from error

    def open(
        self, id: str, *, owner: str, user: str, query: str, probabilities: tuple[float, ...]
    ) -> None:
        """The case is on the disk."""
        row = (id, _now(), owner, user, query, json.dumps(probabilities))
        with self._ready() as database:
            database.execute(
                "INSERT INTO cases (id, opened, owner, user, query, probabilities) VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )

    def withdraw(self, id: str) -> None:
        """The case is gone, if it was there: its asker was never told of it."""
        with contextlib.suppress(AegisError, sqlite3.Error), self._ready() as database:
            database.execute("DELETE FROM cases WHERE id = ? AND resolved IS NULL", (id,))

    def get(self, id: str) -> Case:
        """The case.

        Raises:
            NoCaseError: if there is none.
        """
        with self._ready() as database:
            row = database.execute(f"SELECT {_COLUMNS} FROM cases WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise NoCaseError("there is no such case; `aegis review list` shows those that wait")
        return _case(row)

    def find(self, beginning: str) -> Case:
        """The one case whose id begins so.

        Raises:
            NoCaseError: if there is none, or more than one.
        """
        wanted = beginning.removeprefix("chatcmpl-")
        with self._ready() as database:
            rows = database.execute(
                f"SELECT {_COLUMNS} FROM cases WHERE instr(id, ?) = 1 LIMIT 2", (wanted,)
            ).fetchall()
        if len(rows) != 1:
            raise NoCaseError(
                f"{'no' if not rows else 'more than one'} case begins with that id; see `aegis review list`"
            )
        return _case(rows[0])

    def list(self, *, resolved: bool = False, limit: int = 50) -> list[Case]:
        """Open cases, the oldest first; or resolved ones, the newest first."""
        order = (
            "resolved IS NOT NULL ORDER BY number DESC"
            if resolved
            else "resolved IS NULL ORDER BY number"
        )
        with self._ready() as database:
            return [
                _case(row)
                for row in database.execute(
                    f"SELECT {_COLUMNS} FROM cases WHERE {order} LIMIT ?", (limit,)
                )
            ]

    def waiting(self) -> int:
        """How many cases are open."""
        with self._ready() as database:
            return database.execute("SELECT count(*) FROM cases WHERE resolved IS NULL").fetchone()[
                0
            ]

    def resolve(self, id: str, answer: str, *, reviewer: str) -> Case:
        """The case with its answer, on the disk.

        Raises:
            NoCaseError: if there is none.
            ResolvedError: if somebody was quicker.
        """
        with self._ready() as database:
            done = database.execute(
                "UPDATE cases SET answer = ?, resolved = ?, reviewer = ? WHERE id = ? AND resolved IS NULL",
                (answer, _now(), reviewer, id),
            )
        case = self.get(id)
        if not done.rowcount:
            raise ResolvedError(
                f"the case was resolved at {case.resolved} by {case.reviewer}; that answer stands"
            )
        return case

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextlib.contextmanager
    def _ready(self) -> Iterator[sqlite3.Connection]:
        with self._lock, disk_full_explained(self.path):
            yield self._database


_COLUMNS = "id, opened, owner, user, query, probabilities, answer, resolved, reviewer"


def _case(row: tuple) -> Case:
    id, opened, owner, user, query, probabilities, *rest = row
    return Case(id, opened, owner, user, query, tuple(json.loads(probabilities)), *rest)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
