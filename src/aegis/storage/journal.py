"""A journal of finished results by key: a stage that was killed does not compute them again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aegis.storage.files import disk_full_explained, make_folder, sync_folder

Remember = Callable[[str, Callable[[], Any]], Any]
"""(key, compute) → what `compute` gives, now or at an earlier time."""


def compute_anew(_: str, compute: Callable[[], Any]) -> Any:
    """Be the `Remember` that remembers nothing."""
    return compute()


class Journal:
    """JSON values by key in one file that only grows; every value is on the disk before it is used.

    Each line carries a checksum. A line that a power cut tore or a bad sector changed is passed
    over and computed again; the lines around it count.

    Args:
        path: the file; created with the first value. Remove its folder when the work is done.
        check: called after each new value; raises StoppedError if a stop was asked for.
        say: called with how many lines could not be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        check: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.path, self.check = path, check
        self.values: dict[str, Any] = {}
        damaged = 0
        for line in filter(None, path.read_bytes().split(b"\n") if path.exists() else []):
            try:
                digest, body = line.split(b" ", 1)
                if digest.decode() != _digest(body):
                    raise ValueError
                key, value = json.loads(body)
                self.values[key] = value
            except ValueError:
                damaged += 1
        if damaged:
            problem = f"{path.name}: {damaged} damaged line(s) passed over"
            say(f"{problem}, what they held is worked out again")

    def __call__(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return the value of the key, from the file or computed now.

        Raises:
            StoppedError: if a stop was asked for; the value is kept.
            DiskFullError: if there is no room; what was there before is intact.
        """
        if key not in self.values:
            value = compute()
            self._append(key, value)
            self.values[key] = value
            self.check()
        return self.values[key]

    def _append(self, key: str, value: Any) -> None:
        is_new = not self.path.exists()
        make_folder(self.path.parent)
        body = json.dumps([key, value], ensure_ascii=False).encode()
        with disk_full_explained(self.path), self.path.open("ab") as file:
            # A line break first: whatever a cut left unfinished cannot swallow this line.
            file.write(b"\n" + _digest(body).encode() + b" " + body + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self.path.parent)


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]
