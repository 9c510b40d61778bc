"""Logs for the tests of the audit log."""

from __future__ import annotations

from pathlib import Path

from aegis.audit import AuditEntry, AuditKeys, AuditLog
from aegis.audit.log_tip import read_log_tip
from aegis.audit.reader import read_newest, segments
from aegis.audit.verify import verify
from aegis.errors import AuditError
from aegis.protocol.thinking import PrivateText

WORDS = {
    "task": "the private task",
    "safety": "the private risk",
    "policy": "ALLOW",
    "final": "the private plan",
}


def entry(number: int, *, user: str | None = "hanako", sections: bool = True) -> AuditEntry:
    return AuditEntry(
        request_id=f"request-{number}",
        user=user,
        decision="ALLOW",
        escalated=False,
        model="tiny",
        query=f"query {number}",
        sections={name: PrivateText(text) for name, text in WORDS.items()} if sections else {},
        final=f"final {number}",
        outcome="answered",
    )


def write(
    folder: Path,
    keys: AuditKeys,
    count: int,
    *,
    segment_bytes: int = 1 << 16,
    first: int = 1,
    sign_every_s: float = 1,
) -> None:
    with AuditLog.open(folder, keys, segment_bytes=segment_bytes, sign_every_s=sign_every_s) as log:
        for number in range(first, first + count):
            assert log.append(entry(number, sections=number % 2 == 0)) == number


def lines_of(folder: Path) -> list[list[bytes]]:
    return [path.read_bytes().splitlines(keepends=True) for path in segments(folder)]


def all_lines(folder: Path) -> list[bytes]:
    return [line for lines in lines_of(folder) for line in lines]


def problems(folder: Path, keys: AuditKeys) -> list[str]:
    """What each of the three readers says: the owner's verify, the server's opening, an auditor
    without any key."""
    try:
        read_newest(folder, keys, read_log_tip(keys))
        opening = ""
    except AuditError as error:
        opening = str(error)
    try:
        outsider = verify(folder).problem
    except AuditError as error:
        outsider = str(error)
    return [verify(folder, keys=keys).problem, opening, outsider]


def interrupted(tmp_path: Path) -> tuple[Path, AuditKeys, bytes, int, bytes]:
    """A log whose process died after record 3; its bytes, where record 3 begins, and the head of
    before record 3."""
    keys = AuditKeys.create(tmp_path / "keys")
    log = AuditLog.open(tmp_path / "log", keys)
    log.append(entry(1))
    log.append(entry(2))
    (path,) = segments(tmp_path / "log")
    size, head = len(path.read_bytes().rstrip(b"\0")), (keys.folder / "head").read_bytes()
    log.append(entry(3))
    log._release()
    return tmp_path / "log", keys, path.read_bytes().rstrip(b"\0"), size, head
