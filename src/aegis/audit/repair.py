"""What an owner may do to a log: accept a break, erase records' keys, change the master. Nothing in
it is ever deleted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from aegis.audit.chain import ERASED
from aegis.audit.keys import AuditKeys, utc_now
from aegis.audit.log import SALTS, Acceptance, AuditLog, read_newest
from aegis.audit.log_tip import Head, read_head
from aegis.audit.notes import add_note
from aegis.audit.reader import records, segments
from aegis.audit.salts import Salts
from aegis.audit.verify import verify
from aegis.errors import AuditError, BadInputError
from aegis.storage.files import hash_file

_REASON_LIMIT = 500  # characters


def accept(
    folder: Path, keys: AuditKeys, *, reason: str, clock: Callable[[], str] = utc_now
) -> int:
    """The log can be written again: a new file begins with a signed line that names what was found,
    and why it is accepted.

    The damaged files stay as they are, and from now on are held to that. Numbers go on after the
    highest one in use.

    Returns:
        The number after which the new chain begins.

    Raises:
        BadInputError: if there is nothing to accept, or no reason is given.
        AegisError: if a server has the log open.
    """
    _require_reason(reason)
    problem = _problem(folder, keys)
    if not problem:
        raise BadInputError(f"{folder}: the log is sound, so there is nothing to accept")
    try:
        head = read_head(keys)
    except AuditError:
        head = None
    after, log = _resume_at(folder, head)
    facts = {
        "reason": reason,
        "problem": problem,
        "files": {path.name: hash_file(path) for path in segments(folder)},
    }
    acceptance = Acceptance(log, after, head.sequence if head else 0, facts)
    with AuditLog.open(folder, keys, acceptance=acceptance, clock=clock):
        return after


def erase(
    folder: Path,
    keys: AuditKeys,
    numbers: Sequence[int],
    *,
    reason: str,
    clock: Callable[[], str] = utc_now,
) -> None:
    """The records' keys are gone, so that nobody can test a guess at them any more; a note of it
    awaits the log's opening.

    The chain covers commitments, not texts, and stays sound. A running server need not stop.

    Raises:
        AuditError: if there is no such record; nothing was erased.
    """
    _require_reason(reason)
    there = {record["number"] for record, _ in records(folder)}
    if missing := sorted(set(numbers) - there):
        raise AuditError(f"{folder}: has no record {missing[0]}; nothing was erased")
    add_note(
        keys.folder,
        {"kind": ERASED, "time": clock(), "numbers": sorted(set(numbers)), "reason": reason},
    )
    Salts(keys.folder / SALTS).erase(sorted(set(numbers)))


def _problem(folder: Path, keys: AuditKeys) -> str:
    """What keeps the log from being opened, or verified."""
    try:
        read_newest(folder, keys, read_head(keys))
        return verify(folder, keys=keys).problem
    except AuditError as error:
        return str(error)


def _resume_at(folder: Path, head: Head | None) -> tuple[int, str]:
    """The highest number that may have been used, and the log's name.

    A forged line may claim any number: no more are believed than there are lines.
    """
    known, log = (head.after, head.log) if head else (0, "")
    lines = 0
    numbers = [known]
    for record, name in records(folder):
        lines += 1
        log = log or name
        numbers.append(record["number"] if isinstance(record.get("number"), int) else 0)
    return max(number for number in numbers if number <= known + lines), log or os.urandom(16).hex()


def _require_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > _REASON_LIMIT or not reason.isprintable():
        raise BadInputError(
            f"--reason must be 1 to {_REASON_LIMIT} printable characters; it is kept in the log"
        )
