"""One random salt a record, outside the log: a record whose salt is erased can never be opened
again, by nobody.

A master key alone could derive every record's key again, so erasing one record needs something of
its own to erase. Salts are made and synced in blocks ahead of the records that use them, so that a
record costs one fsync, not two.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from aegis.audit.private import make_private_folder, open_private, write_at, write_private

SIZE = 32  # bytes
BLOCK = 4096  # salts a file


class Salts:
    """The salts by record number, which begins at 1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number, self._block = -1, b""

    def use(self, number: int) -> bytes:
        """The salt of a new record, durable before it is used. The caller lets one thread at a time
        in.

        Raises:
            OSError, DiskFullError: if a new block cannot be written.
        """
        block, place = divmod(number - 1, BLOCK)
        if block != self._number:
            path, _ = self._where(number)
            if not path.exists():
                make_private_folder(self.folder)
                write_private(path, secrets.token_bytes(BLOCK * SIZE))
            self._number, self._block = block, path.read_bytes()
        return self._block[place * SIZE : (place + 1) * SIZE]

    def find(self, number: int) -> bytes | None:
        """The salt of a record; None if it was erased or is not here."""
        path, place = self._where(number)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            file.seek(place)
            salt = file.read(SIZE)
        return salt if len(salt) == SIZE and any(salt) else None

    def erase(self, numbers: list[int]) -> None:
        """The salts of these records are overwritten with zeros on the disk; a running server need
        not stop for it."""
        for number in numbers:
            path, place = self._where(number)
            if not path.is_file():
                continue
            descriptor = open_private(path, os.O_RDWR)
            try:
                write_at(descriptor, bytes(SIZE), place)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _where(self, number: int) -> tuple[Path, int]:
        block, place = divmod(number - 1, BLOCK)
        return self.folder / f"{block + 1:06d}.bin", place * SIZE
