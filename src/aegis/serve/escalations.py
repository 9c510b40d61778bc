"""What a person has to decide: a queue in SQLite that survives restarts, written before the asker
is told of it."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from aegis.errors import AegisError, BadInputError
from aegis.runs.database import place_explained, reading_from
from aegis.storage.files import make_folder

QUEUE_FILE = "escalations.db"
_WAIT_S = 10.0  # for another process to end its writing
_SCHEMA = """
CREATE TABLE IF NOT EXISTS cases (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, opened TEXT NOT NULL, owner TEXT NOT NULL,
    user TEXT NOT NULL, query TEXT NOT NULL, probabilities TEXT NOT NULL, answer TEXT,
    resolved TEXT, reviewer TEXT);
CREATE INDEX IF NOT EXISTS cases_open ON cases (number) WHERE resolved IS NULL;
CREATE TABLE IF NOT EXISTS claims (
    id TEXT PRIMARY KEY, holder TEXT NOT NULL, name TEXT NOT NULL, until REAL NOT NULL);
CREATE TABLE IF NOT EXISTS reviews (
    id TEXT PRIMARY KEY, decision TEXT NOT NULL, note TEXT NOT NULL, holder TEXT NOT NULL,
    unix REAL NOT NULL);
"""
_COLUMNS = "id, opened, owner, user, query, probabilities, answer, resolved, reviewer"


class NoCaseError(BadInputError):
    """There is no such case."""


class QueueBusyError(AegisError):
    """Another process is writing to the queue."""


class QueueGoneError(AegisError):
    """The queue's file was moved, removed, replaced or emptied; what is written would be lost."""


class ResolvedError(BadInputError):
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

    Args:
        writable: False to look at it, wherever it lies.

    Raises:
        BadInputError: if the file is no queue, or cannot be written where it is.
        DiskFullError: if there is no room for it.
        QueueBusyError: if another process keeps it to itself.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path, self._lock = path, threading.Lock()
        with contextlib.ExitStack() as stack, self._explained():
            self._database = stack.enter_context(_made(path) if writable else reading_from(path))
            self._resources = stack.pop_all()
        files = (path, path.with_name(f"{path.name}-wal")) if writable else ()
        self._opened = {file: file.stat() for file in files if file.exists()}

    def open(
        self, id: str, *, owner: str, user: str, query: str, probabilities: tuple[float, ...]
    ) -> None:
        """Put a new case on the disk, or raise QueueGoneError."""
        row = (id, _now(), owner, user, query, json.dumps(probabilities))
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO cases (id, opened, owner, user, query, probabilities) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )

    def withdraw(self, id: str) -> None:
        """Take back a case, if it is there: its asker was never told of it."""
        with contextlib.suppress(AegisError, sqlite3.Error), self._connection() as connection:
            connection.execute("DELETE FROM cases WHERE id = ? AND resolved IS NULL", (id,))

    def get(self, id: str) -> Case:
        """Return the case, or raise NoCaseError."""
        with self._connection() as connection:
            return self.require(connection, id)

    def find(self, prefix: str) -> Case:
        """Return the one case whose id begins so; raise NoCaseError if there is none, or more."""
        cases = self._select("WHERE instr(id, ?) = 1 LIMIT 2", prefix.removeprefix("chatcmpl-"))
        if len(cases) != 1:
            number = "more than one" if cases else "no"
            raise NoCaseError(f"{number} case begins with that id; see `aegis review list`")
        return cases[0]

    def list(self, *, resolved: bool = False, limit: int = 50) -> builtins.list[Case]:
        """Return open cases, the oldest first; or resolved ones, the newest first."""
        if resolved:
            return self._select("WHERE resolved IS NOT NULL ORDER BY number DESC LIMIT ?", limit)
        return self._select("WHERE resolved IS NULL ORDER BY number LIMIT ?", limit)

    def waiting(self) -> int:
        """Return how many cases are open."""
        with self._connection() as connection:
            rows = connection.execute("SELECT count(*) FROM cases WHERE resolved IS NULL")
            return rows.fetchone()[0]

    def resolve(self, id: str, answer: str, *, reviewer: str) -> Case:
        """Put the answer on the disk and return its case.

        Raises:
            NoCaseError: if there is none.
            ResolvedError: if somebody was quicker.
            QueueGoneError: if the file is not where it was.
        """
        with self.transaction() as connection:
            self.require_open(connection, id)
            return self.put_answer(connection, id, answer, reviewer=reviewer)

    def reviewed(self) -> builtins.list[tuple[Case, str, str]]:
        """Return the cases that a person decided, each with the decision and the note, the oldest
        first."""
        with self._connection() as connection:
            if not connection.execute("PRAGMA table_info(reviews)").fetchall():
                return []  # an older AEGIS made the queue
            rows = connection.execute(
                "SELECT reviews.id, decision, note FROM reviews JOIN cases USING (id) "
                "WHERE resolved IS NOT NULL ORDER BY number"
            ).fetchall()
            return [(self.require(connection, id), *rest) for id, *rest in rows]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection for several statements: all of them are done, or none."""
        with self._writing() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def require(self, connection: sqlite3.Connection, id: str) -> Case:
        """Return the case as the connection sees it, or raise NoCaseError."""
        for case in read_cases(connection, "WHERE id = ?", id):
            return case
        raise NoCaseError("there is no such case; `aegis review list` shows those that wait")

    def require_open(self, connection: sqlite3.Connection, id: str) -> Case:
        """Return the case if nobody has resolved it, or raise NoCaseError or ResolvedError."""
        case = self.require(connection, id)
        if case.resolved:
            raise ResolvedError(
                f"{case.reviewer} answered this case at {case.resolved}; that answer stands"
            )
        return case

    def put_answer(
        self, connection: sqlite3.Connection, id: str, answer: str, *, reviewer: str
    ) -> Case:
        """Resolve an open case within the connection's transaction, and return it."""
        connection.execute(
            "UPDATE cases SET answer = ?, resolved = ?, reviewer = ? WHERE id = ?",
            (answer, _now(), reviewer, id),
        )
        return self.require(connection, id)

    def close(self) -> None:
        with self._lock:
            self._resources.close()

    def _select(self, clause: str, value: str | int) -> builtins.list[Case]:
        with self._connection() as connection:
            return read_cases(connection, clause, value)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection; what it writes is what others find under the path."""
        self._require_in_place()
        with self._connection() as connection:
            yield connection
        self._require_in_place()

    def _require_in_place(self) -> None:
        in_place = False
        with contextlib.suppress(OSError):  # no open(): closing it would drop SQLite's locks
            same = [os.path.samestat(was, file.stat()) for file, was in self._opened.items()]
            in_place = all(same) and self.path.stat().st_size > 0
        if not in_place:
            raise QueueGoneError(
                f"{self.path}: was moved, removed, replaced or emptied while it was in use; "
                "put it back, or start again with a queue where this one is to be"
            )

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained():
            yield self._database

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with place_explained(self.path):
                yield
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                raise QueueBusyError(
                    f"{self.path}: another process is writing; try again"
                ) from error
            raise BadInputError(
                f"{self.path}: is no escalation queue, or a damaged one ({error}); "
                "move it away or name another with --cases"
            ) from error


@contextlib.contextmanager
def _made(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection to the queue, which is made if it is not there."""
    make_folder(path.parent)
    with contextlib.closing(
        sqlite3.connect(path, timeout=_WAIT_S, check_same_thread=False, isolation_level=None)
    ) as database:
        path.chmod(0o600)  # it holds questions in plain text
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.executescript(_SCHEMA)
        yield database


def read_cases(
    connection: sqlite3.Connection, clause: str, value: str | int
) -> builtins.list[Case]:
    """Return the cases that a clause with one parameter selects."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM cases {clause}", (value,))
    return [_case(row) for row in rows]


def _case(row: tuple) -> Case:
    id, opened, owner, user, query, probabilities, *rest = row
    return Case(id, opened, owner, user, query, tuple(json.loads(probabilities)), *rest)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
