"""What people decide about escalated cases: one at a time, each claimed by one reviewer, every act
in the audit log, and the decisions as records to train on."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from aegis.audit import AuditEntry
from aegis.data.personal.masking import mask_personal_data
from aegis.data.records import Provenance, Record
from aegis.errors import BadInputError
from aegis.protocol.decisions import Decision
from aegis.protocol.language import detect_language
from aegis.serve.escalations import Case, CaseQueue, read_cases

CLAIM_S, UNDO_S = 600.0, 60.0
Act = Literal["claimed", "passed on", "answered", "undone"]
_MODEL = "person"  # who decided, where the log names the model
_NEXT = """
WHERE resolved IS NULL AND id NOT IN (SELECT id FROM claims)
ORDER BY number <= coalesce((SELECT number FROM cases WHERE id = ?), 0), number LIMIT 1"""


class ClaimedError(BadInputError):
    """Another reviewer has the case now."""


class TooLateError(BadInputError):
    """The answer stands: it is older than a minute, or somebody else's."""


@dataclass(frozen=True)
class Reviewer:
    """Who decides: `holder` tells two browsers of one name apart."""

    name: str
    holder: str


@dataclass(frozen=True)
class Review:
    """What a person decided: the right decision, what the asker is told, and why."""

    decision: Decision
    answer: str
    note: str = ""


class ReviewDesk:
    """The queue as reviewers work on it. Safe to use from many threads and processes.

    Args:
        record: puts an act into the audit log, or raises; an act that is not in it did not happen.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        cases: CaseQueue,
        record: Callable[[AuditEntry], object],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.cases, self._record, self._clock = cases, record, clock

    def held(self, reviewer: Reviewer) -> Case | None:
        """Return the case that the reviewer has claimed."""
        with self.cases.transaction() as connection:
            self._drop_old_claims(connection)
            return _held(connection, reviewer)

    def pass_on(self, id: str, reviewer: Reviewer) -> Case | None:
        """Give the case back, and claim the next one behind it."""
        with self.cases.transaction() as connection:
            held = _held(connection, reviewer)
            if held and held.id == id:
                connection.execute("DELETE FROM claims WHERE id = ?", (id,))
                self._tell("passed on", held, reviewer)
        return self.claim_next(reviewer, after=id)

    def claim_next(self, reviewer: Reviewer, *, after: str = "") -> Case | None:
        """Return the reviewer's case or, claimed for ten minutes, the oldest that nobody has, those
        behind the case `after` first; None if there is none."""
        with self.cases.transaction() as connection:
            self._drop_old_claims(connection)
            if held := _held(connection, reviewer):
                return held
            for case in read_cases(connection, _NEXT, after):
                self._claim(connection, case, reviewer)
                self._tell("claimed", case, reviewer)
                return case
            return None

    def decide(self, id: str, review: Review, reviewer: Reviewer) -> Case:
        """Put the decision and the answer on the disk; the first answer stands.

        Raises:
            NoCaseError, ResolvedError: as `CaseQueue.resolve` does.
            ClaimedError: if another reviewer has claimed the case.
        """
        with self.cases.transaction() as connection:
            self._drop_old_claims(connection)
            case = self.cases.require_open(connection, id)
            rows = connection.execute("SELECT holder, name FROM claims WHERE id = ?", (id,))
            holder, name = rows.fetchone() or (reviewer.holder, "")
            if holder != reviewer.holder:
                raise ClaimedError(f"{name} has this case now; take the next one")
            answered = self.cases.put_answer(connection, id, review.answer, reviewer=reviewer.name)
            connection.execute(
                "INSERT OR REPLACE INTO reviews VALUES (?, ?, ?, ?, ?)",
                (id, review.decision.name, review.note, reviewer.holder, self._clock()),
            )
            connection.execute("DELETE FROM claims WHERE id = ?", (id,))
            self._tell("answered", case, reviewer, review)
            return answered

    def undo(self, id: str, reviewer: Reviewer) -> Case:
        """Open the case again and claim it, within a minute of the reviewer's own answer.

        Raises:
            TooLateError: if there is nothing of theirs to undo.
        """
        with self.cases.transaction() as connection:
            since = self._clock() - UNDO_S
            rows = connection.execute(
                "DELETE FROM reviews WHERE id = ? AND holder = ? AND unix >= ?",
                (id, reviewer.holder, since),
            )
            if not rows.rowcount:
                raise TooLateError(
                    "only your own answer can be undone, for a minute; this one stands"
                )
            connection.execute(
                "UPDATE cases SET answer = NULL, resolved = NULL, reviewer = NULL WHERE id = ?",
                (id,),
            )
            connection.execute("DELETE FROM claims WHERE holder = ?", (reviewer.holder,))
            case = self.cases.require(connection, id)
            self._claim(connection, case, reviewer)
            self._tell("undone", case, reviewer)
            return case

    def _claim(self, connection: sqlite3.Connection, case: Case, reviewer: Reviewer) -> None:
        until = self._clock() + CLAIM_S
        claim = (case.id, reviewer.holder, reviewer.name, until)
        connection.execute("INSERT INTO claims VALUES (?, ?, ?, ?)", claim)

    def _drop_old_claims(self, connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM claims WHERE until < ?", (self._clock(),))

    def _tell(self, act: Act, case: Case, reviewer: Reviewer, review: Review | None = None) -> None:
        entry = AuditEntry(
            request_id=case.id,
            user=reviewer.name,
            decision=review.decision.name if review else Decision.ESCALATION.name,
            escalated=not review,
            model=_MODEL,
            query=case.query,
            sections={},
            final=review.answer if review else "",
            outcome=f"review: {act}",
        )
        self._record(entry)


def _held(connection: sqlite3.Connection, reviewer: Reviewer) -> Case | None:
    clause = "WHERE resolved IS NULL AND id IN (SELECT id FROM claims WHERE holder = ?)"
    return next(iter(read_cases(connection, clause, reviewer.holder)), None)


def reviewed_records(cases: CaseQueue) -> Iterator[Record]:
    """Yield what people decided as records, personal data masked, the oldest first.

    Neither asker nor reviewer is in them. An answer that was given without a decision, by
    `aegis review answer`, is none.
    """
    for case, decision, note in cases.reviewed():
        prompt, _ = mask_personal_data(case.query)
        why, _ = mask_personal_data(note)
        decided = datetime.fromisoformat(case.resolved or case.opened).astimezone(UTC)
        yield Record(
            id=f"review-{case.id}",
            prompt=prompt,
            decision=Decision[decision],
            language=detect_language(prompt),
            domain="review",
            rationale=why or None,
            source="review",
            provenance=Provenance(
                source="review", backend="person", time=f"{decided:%Y-%m-%dT%H:%M:%SZ}"
            ),
        )
