"""The newest seal or checkpoint, kept outside the log: a log that ends before it lost records.

A file of two slots of 512 bytes, one disk sector each, written in turn: `SEQUENCE open|closed
LINE`. Each record overwrites a slot without an fsync of its own. After a kill the newest slot is
exact; after a power cut it may be some seconds old, and it is never ahead of the log.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from aegis.audit.chain import Kind, LineError, parse
from aegis.audit.keystore import OWNER_ONLY, AuditKeys, make_private_folder
from aegis.errors import AuditError
from aegis.storage.files import open_descriptor, require_in_place, write_at, write_bytes

TIP_FILE = "head"
_SLOT_BYTES = 512
_OPEN, _CLOSED = b"open", b"closed"


@dataclass(frozen=True)
class LogTip:
    """What the log is known to hold.

    Args:
        sequence: grows with every write.
        raw: the seal or checkpoint.
        after: records that were acknowledged.
        closed: the log was closed in good order: nothing can stand after the tip.
    """

    sequence: int
    raw: bytes
    log: str
    after: int
    closed: bool


def read_log_tip(keys: AuditKeys) -> LogTip | None:
    """Return the newest valid slot; None if no log was ever begun with these keys.

    Raises:
        AuditError: if there is a file and neither slot is by one of the keys.
    """
    path = keys.folder / TIP_FILE
    if not path.is_file():
        return None
    data = path.read_bytes()
    slots = (data[:_SLOT_BYTES], data[_SLOT_BYTES : 2 * _SLOT_BYTES])
    tips = [tip for slot in slots if (tip := _read_slot(slot, keys))]
    if not tips:
        raise AuditError(
            f"{path}: holds nothing signed by these keys; give all keys that the log was written "
            "with, or, if the file is lost, have the state of the log accepted with: "
            "aegis audit accept"
        )
    return max(tips, key=lambda tip: tip.sequence)


def _read_slot(slot: bytes, keys: AuditKeys) -> LogTip | None:
    try:
        sequence, state, raw = slot.strip(b" \n\0").split(b" ", 2)
        line = parse(raw)
        is_ending = line["kind"] in (Kind.SEAL, Kind.CHECKPOINT) and state in (_OPEN, _CLOSED)
        if is_ending and keys.find_maker(line):
            return LogTip(int(sequence), raw, line["log"], line["after"], state == _CLOSED)
    except (LineError, ValueError):
        pass
    return None


class LogTipWriter:
    """Writes the tip of one open log; for one thread at a time."""

    def __init__(self, folder: Path, *, sequence: int, raw: bytes) -> None:
        """Write the line to both slots, durably.

        Raises:
            OSError, DiskFullError: if it cannot be written.
        """
        make_private_folder(folder)
        self.path = folder / TIP_FILE
        self.sequence = sequence + 2
        slots = _slot(self.sequence - 1, _OPEN, raw) + _slot(self.sequence, _OPEN, raw)
        write_bytes(self.path, slots, OWNER_ONLY)
        self._descriptor = open_descriptor(self.path, os.O_RDWR)

    def require_in_place(self) -> None:
        """Raise OSError if the file was moved away, removed or replaced."""
        require_in_place(self._descriptor, self.path)

    def write(self, raw: bytes, *, closed: bool = False) -> None:
        """Write the line to the older slot.

        Raises:
            OSError: if it cannot be written.
        """
        self.sequence += 1
        slot = _slot(self.sequence, _CLOSED if closed else _OPEN, raw)
        write_at(self._descriptor, slot, (self.sequence % 2) * _SLOT_BYTES)
        if closed:
            os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _slot(sequence: int, state: bytes, raw: bytes) -> bytes:
    text = b"%d %s %s" % (sequence, state, raw)
    assert len(text) < _SLOT_BYTES, f"a line of {len(raw)} bytes does not fit {_SLOT_BYTES}"
    return text.ljust(_SLOT_BYTES - 1) + b"\n"
