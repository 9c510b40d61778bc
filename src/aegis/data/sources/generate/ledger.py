"""Every call with its price, on the disk before its answer is used: nothing is paid for twice.

One SQLite table. A call's row is written before it begins, with what it may cost; the answer, or
why there is none, and what it did cost take its place.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from aegis.data.sources.generate.backend import CallError, CallUsage, RawAnswer, Request
from aegis.errors import DataError
from aegis.runs.database import reading_from, writing_to
from aegis.storage.files import make_folder

State = Literal["begun", "answered", "failed"]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    state TEXT NOT NULL,          -- begun, answered, failed
    step TEXT NOT NULL,
    topic TEXT NOT NULL,
    backend TEXT NOT NULL,
    model TEXT,
    prompt_version TEXT NOT NULL,
    prompt TEXT NOT NULL,
    raw TEXT,                     -- the answer as it came, or what came with a failure
    reason TEXT,                  -- why it failed
    cut INTEGER NOT NULL DEFAULT 0,
    begun TEXT NOT NULL,          -- UTC
    ended TEXT,
    seconds REAL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost REAL NOT NULL            -- US dollars
);
CREATE INDEX IF NOT EXISTS by_key ON calls (key);
"""


@dataclass(frozen=True)
class Origin:
    """Who answers, for the record's provenance."""

    backend: str
    model: str | None
    prompt_version: str


@dataclass(frozen=True)
class Spent:
    """Sums over calls, begun ones with what they may cost."""

    requests: int = 0
    tokens: int = 0
    cost: float = 0.0

    def plus(self, usage: CallUsage, requests: int = 0) -> Spent:
        tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
        return Spent(self.requests + requests, self.tokens + tokens, self.cost + (usage.cost or 0))

    def minus(self, usage: CallUsage) -> Spent:
        tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
        return Spent(self.requests, self.tokens - tokens, self.cost - (usage.cost or 0))


@dataclass(frozen=True)
class Ceilings:
    """What a folder's calls may come to, all runs together; None sets no bound.

    Args:
        seconds: of this run, after which no call begins.
    """

    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None

    def reached(self, spent: Spent) -> str:
        """Return which ceiling is passed with this, or nothing."""
        for name in ("requests", "tokens", "cost"):
            most = getattr(self, name)
            if most is not None and getattr(spent, name) > most + 1e-9:
                return f"--max-{name} {most:g}"
        return ""


@dataclass(frozen=True)
class Kept:
    """An answer in the ledger, and when and for how much it came."""

    answer: RawAnswer
    time: str
    cost: float


class CeilingError(Exception):
    """The next call could pass a ceiling; it names which."""


class Ledger:
    """The calls of one folder. Threads may share it; processes take turns.

    Raises:
        DataError: if the file is no ledger.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.clock = path, clock
        self.spent, self.interrupted = Spent(), 0
        self.lock = threading.Lock()
        make_folder(path.parent)
        try:
            with writing_to(path, _SCHEMA) as database:
                database.executescript(_SCHEMA)  # a killed run may have left an empty file
                row = database.execute(
                    "SELECT count(*), total(input_tokens + output_tokens), total(cost),"
                    " total(state = 'begun') FROM calls"
                ).fetchone()
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path}: is no ledger of calls ({error}); move it away") from error
        self.spent = Spent(row[0], int(row[1]), row[2])
        self.interrupted = int(row[3])
        """Calls that a killed run had begun: they may have been paid for, their answer is lost."""

    def find(self, key: str) -> Kept | None:
        """Return the answer of an earlier call."""
        with reading_from(self.path) as database:
            row = database.execute(
                "SELECT raw, model, cut, ended, input_tokens, output_tokens, cost FROM calls"
                " WHERE key = ? AND state = 'answered'",
                (key,),
            ).fetchone()
        if row is None:
            return None
        raw, model, cut, ended, inputs, outputs, cost = row
        return Kept(RawAnswer(raw, CallUsage(inputs, outputs, cost), model, bool(cut)), ended, cost)

    def begin(
        self, key: str, request: Request, origin: Origin, likely: CallUsage, ceilings: Ceilings
    ) -> tuple[int, float]:
        """Note a call with what it may cost, and return its number and start.

        Raises:
            CeilingError: if it could pass a ceiling; nothing is noted.
        """
        with self.lock:
            after = self.spent.plus(likely, requests=1)
            if reached := ceilings.reached(after):
                raise CeilingError(reached)
            self.spent = after
            columns = "key, state, step, topic, backend, model, prompt_version, prompt, begun"
            values = (key, "begun", request.step, request.topic, origin.backend, origin.model)
            values = (*values, origin.prompt_version, request.prompt, _now())
            with writing_to(self.path, _SCHEMA) as database:
                cursor = database.execute(
                    f"INSERT INTO calls ({columns}, input_tokens, output_tokens, cost)"
                    f" VALUES ({', '.join('?' * 12)})",
                    (*values, likely.input_tokens, likely.output_tokens, likely.cost),
                )
            return int(cursor.lastrowid or 0), self.clock()

    def end(
        self,
        call: tuple[int, float],
        likely: CallUsage,
        usage: CallUsage,
        outcome: RawAnswer | CallError,
    ) -> str:
        """Put on the disk how a call ended; return the time."""
        answered = isinstance(outcome, RawAnswer)
        raw, model = outcome.text if answered else outcome.raw, answered and outcome.model
        reason, ended = None if answered else str(outcome), _now()
        values = ("answered" if answered else "failed", raw, reason, answered and outcome.cut)
        values = (*values, ended, self.clock() - call[1], model or None)
        tokens = (usage.input_tokens or 0, usage.output_tokens or 0, usage.cost or 0.0)
        with self.lock:
            self.spent = self.spent.minus(likely).plus(usage)
            with writing_to(self.path, _SCHEMA) as database:
                database.execute(
                    "UPDATE calls SET state = ?, raw = ?, reason = ?, cut = ?, ended = ?,"
                    " seconds = ?, model = coalesce(?, model), input_tokens = ?,"
                    " output_tokens = ?, cost = ? WHERE number = ?",
                    (*values, *tokens, call[0]),
                )
        return ended

    def used(self) -> dict[str, tuple[int, CallUsage]]:
        """Return by step how many calls were answered, and what they used together."""
        with reading_from(self.path) as database:
            rows = database.execute(
                "SELECT step, count(*), sum(input_tokens), sum(output_tokens), sum(cost) FROM calls"
                " WHERE state = 'answered' GROUP BY step"
            ).fetchall()
        return {step: (count, CallUsage(*sums)) for step, count, *sums in rows}


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
