"""The newest seal or checkpoint, kept outside the log: a log that ends before it has lost
acknowledged records.

A file of two slots of 512 bytes, one disk sector each, written in turn: `SEQUENCE open|closed
LINE`. Each record overwrites a slot without an fsync of its own. After a kill the newest slot is
exact; after a power cut it may be some seconds old, and it is never ahead of the log.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from aegis.audit.chain import CHECKPOINT, SEAL, Damage, is_sealed, is_signed, parse
from aegis.audit.keys import AuditKeys
from aegis.audit.private import make_private_folder, open_private, write_at, write_private
from aegis.errors import AuditError

FILE = "head"
SLOT = 512  # bytes
_OPEN, _CLOSED = b"open", b"closed"


@dataclass(frozen=True)
class Head:
    """What the log is known to hold.

    Args:
        sequence: grows with every write.
        raw: the seal or checkpoint.
        after: records that were acknowledged.
        closed: the log was closed in good order: nothing can stand after it.
    """

    sequence: int
    raw: bytes
    log: str
    after: int
    closed: bool


def read_head(keys: AuditKeys) -> Head | None:
    """The newest valid slot; None if no log was ever begun with these keys.

    Raises:
        AuditError: if there is a head file and neither slot is by one of the keys.
    """
    path = keys.folder / FILE
    if not path.is_file():
        return None
    data = path.read_bytes()
    found = [head for start in (0, SLOT) if (head := _read_slot(data[start : start + SLOT], keys))]
    if not found:
        raise AuditError(
            f"{path}: holds nothing signed by these keys; give all keys that the log was written with, or, if the file "
            "is lost, have the state of the log accepted with: aegis audit accept"
        )
    return max(found, key=lambda head: head.sequence)


def _read_slot(data: bytes, keys: AuditKeys) -> Head | None:
    try:
        sequence, state, raw = data.strip(b" \n\0").split(b" ", 2)
        line = parse(raw)
        if line["kind"] not in (SEAL, CHECKPOINT) or state not in (_OPEN, _CLOSED):
            return None
        signer = keys.find(line["key"])
        if signer is None:
            return None
        ours = (
            is_sealed(line, signer.mac_key)
            if line["kind"] == SEAL
            else is_signed(line, signer.public_key)
        )
        return (
            Head(int(sequence), raw, line["log"], line["after"], state == _CLOSED) if ours else None
        )
    except (Damage, ValueError):
        return None


class HeadFile:
    """Writes the head of one open log. The caller lets one thread at a time in."""

    def __init__(self, folder: Path, *, sequence: int, raw: bytes) -> None:
        """The head holds the line, durably; what it held before is in neither slot.

        Raises:
            OSError, DiskFullError: if it cannot be written.
        """
        make_private_folder(folder)
        self.sequence = sequence + 2
        write_private(
            folder / FILE, _slot(self.sequence - 1, _OPEN, raw) + _slot(self.sequence, _OPEN, raw)
        )
        self._descriptor = open_private(folder / FILE, os.O_RDWR)

    def write(self, raw: bytes, *, closed: bool = False) -> None:
        """The other slot holds the line.

        Raises:
            OSError: if it cannot be written.
        """
        self.sequence += 1
        write_at(
            self._descriptor,
            _slot(self.sequence, _CLOSED if closed else _OPEN, raw),
            (self.sequence % 2) * SLOT,
        )
        if closed:
            os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _slot(sequence: int, state: bytes, raw: bytes) -> bytes:
    text = b"%d %s %s" % (sequence, state, raw)
    assert len(text) < SLOT, f"a line of {len(raw)} bytes does not fit a slot of {SLOT}"
    return text.ljust(SLOT - 1) + b"\n"
