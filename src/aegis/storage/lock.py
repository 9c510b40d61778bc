"""A lock that lets one process at a time work in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from aegis.errors import AegisError
from aegis.storage.files import make_folder

LOCK = ".lock"


@contextlib.contextmanager
def only_process(folder: Path, *, wait_s: float = 0) -> Iterator[None]:
    """Hold the folder for this process; the system lets go when the process ends, however it ends.

    Raises:
        AegisError: if another process holds it for longer than `wait_s`.
    """
    make_folder(folder)
    try:
        with FileLock(folder / LOCK, thread_local=False).acquire(timeout=wait_s):
            yield
    except Timeout as error:
        raise AegisError(
            f"{folder}: another process is at work here; wait for it, or stop it first"
        ) from error
