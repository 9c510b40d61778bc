"""What an owner may do to a log: accept a break, or erase records' keys. Nothing is deleted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from aegis.audit.chain import Kind
from aegis.audit.keystore import AuditKeys, utc_now
from aegis.audit.log import Acceptance, AuditLog
from aegis.audit.log_tip import LogTip, read_log_tip
from aegis.audit.reader import read_newest, records, segments
from aegis.audit.verify import verify
from aegis.errors import AuditError, BadInputError
from aegis.storage.files import hash_file

_REASON_LIMIT = 500  # characters


def accept(
    folder: Path, keys: AuditKeys, *, reason: str, clock: Callable[[], str] = utc_now
) -> int:
    """Begin a new file, whose signed first line says what is wrong and why it is accepted.

    The damaged files stay, and later verifying requires them as they are now. Numbers go on after
    the highest one in use.

    Returns:
        The number after which the new chain begins.

    Raises:
        BadInputError: if there is nothing to accept, or no reason is given.
        AegisError: if a server has the log open.
    """
    _require_reason(reason)
    problem = _find_problem(folder, keys)
    if not problem:
        raise BadInputError(f"{folder}: the log is sound, so there is nothing to accept")
    tip = None
    with contextlib.suppress(AuditError):
        tip = read_log_tip(keys)
    after, log = _last_number(folder, tip)
    files = {path.name: hash_file(path) for path in segments(folder)}
    facts = {"reason": reason, "problem": problem, "files": files}
    acceptance = Acceptance(log, after, tip.sequence if tip else 0, facts)
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
    """Erase the records' salts, so that nobody can test a guess at them any more.

    A note of it enters the log when it is next opened. The chain covers commitments, not texts, and
    stays sound. A running server need not stop.

    Raises:
        AuditError: if there is no such record; nothing was erased.
    """
    _require_reason(reason)
    erased = sorted(set(numbers))
    if missing := sorted(set(erased) - {record["number"] for record, _ in records(folder)}):
        raise AuditError(f"{folder}: has no record {missing[0]}; nothing was erased")
    keys.add_note({"kind": Kind.ERASED, "time": clock(), "numbers": erased, "reason": reason})
    keys.salts.erase(erased)


def _find_problem(folder: Path, keys: AuditKeys) -> str:
    """Return what keeps the log from being opened, or verified."""
    try:
        read_newest(folder, keys, read_log_tip(keys))
        return verify(folder, keys=keys).problem
    except AuditError as error:
        return str(error)


def _last_number(folder: Path, tip: LogTip | None) -> tuple[int, str]:
    """Return the highest number that may have been used, and the log's name.

    A forged line may hold any number, so numbers above the count of lines are not believed.
    """
    known, log = (tip.after, tip.log) if tip else (0, "")
    numbers = [known]
    for record, name in records(folder):
        numbers.append(record["number"])
        log = log or name
    limit = known + len(numbers) - 1
    return max(number for number in numbers if number <= limit), log or os.urandom(16).hex()


def _require_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > _REASON_LIMIT or not reason.isprintable():
        raise BadInputError(
            f"--reason must be 1 to {_REASON_LIMIT} printable characters; it is kept in the log"
        )
