"""The newest signed checkpoint, kept outside the log: a log that ends before it has lost acknowledged records.

A file of two slots of 512 bytes, one disk sector each, written in turn: `SEQUENCE open|closed CHECKPOINT`. Each record
overwrites a slot without an fsync of its own. After a kill the newest slot is exact; after a power cut it may be some
seconds old, and it is never ahead of the log.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from aegis.errors import AuditError
from aegis.serve.audit.chain import Damage, is_signed, parse
from aegis.serve.audit.keys import AuditKeys
from aegis.serve.audit.private import make_private_folder, open_private, write_private

FILE = "head"
SLOT = 512  # bytes
_OPEN, _CLOSED = b"open", b"closed"


@dataclass(frozen=True)
class Head:
    """What the log is known to hold.

    Args:
        sequence: grows with every write.
        raw: the checkpoint's line.
        after: records that were acknowledged.
        closed: the log was closed in good order: nothing can stand after the checkpoint.
    """

    sequence: int
    raw: bytes
    log: str
    after: int
    closed: bool


def read_head(keys: AuditKeys) -> Head | None:
    """The newest valid slot; None if no log was ever begun with these keys.

    Raises:
        AuditError: if there is a head file and neither slot is signed by one of the keys.
    """
    path = keys.folder / FILE
    if not path.is_file():
        return None
    data = path.read_bytes()
    found = [head for start in (0, SLOT) if (head := _read_slot(data[start : start + SLOT], keys))]
    if not found:
        raise AuditError(
            f"{path}: holds no checkpoint signed by these keys; give all keys that the log was written with, or, if the file "
            "is lost, have the state of the log accepted with: aegis audit accept"
        )
    return max(found, key=lambda head: head.sequence)


def _read_slot(data: bytes, keys: AuditKeys) -> Head | None:
    try:
        sequence, state, raw = data.strip(b" \n\0").split(b" ", 2)
        checkpoint = parse(raw)
        signer = keys.find(checkpoint["key"])
        if signer is None or state not in (_OPEN, _CLOSED) or not is_signed(checkpoint, signer.public_key):
            return None
        return Head(int(sequence), raw, checkpoint["log"], checkpoint["after"], state == _CLOSED)
    except (Damage, ValueError, KeyError, TypeError):
        return None


class HeadFile:
    """Writes the head of one open log. The caller lets one thread at a time in."""

    def __init__(self, folder: Path, *, sequence: int, raw: bytes) -> None:
        """The head holds the checkpoint, durably; what it held before is in neither slot.

        Raises:
            OSError, DiskFullError: if it cannot be written.
        """
        make_private_folder(folder)
        self.sequence = sequence + 2
        write_private(folder / FILE, _slot(self.sequence - 1, _OPEN, raw) + _slot(self.sequence, _OPEN, raw))
        self._descriptor = open_private(folder / FILE, os.O_RDWR)

    def write(self, raw: bytes, *, closed: bool = False) -> None:
        """The other slot holds the checkpoint.

        Raises:
            OSError: if it cannot be written.
        """
        self.sequence += 1
        os.lseek(self._descriptor, (self.sequence % 2) * SLOT, os.SEEK_SET)
        os.write(self._descriptor, _slot(self.sequence, _CLOSED if closed else _OPEN, raw))
        if closed:
            os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _slot(sequence: int, state: bytes, raw: bytes) -> bytes:
    text = b"%d %s %s" % (sequence, state, raw)
    assert len(text) < SLOT, f"a checkpoint of {len(raw)} bytes does not fit a slot of {SLOT}"
    return text.ljust(SLOT - 1) + b"\n"
