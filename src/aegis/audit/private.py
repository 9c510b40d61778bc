"""Files that nobody but their owner reads."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from aegis.errors import AuditError
from aegis.storage.files import disk_full_explained, make_folder, sync_folder

OWNER_ONLY = 0o600
_BINARY = getattr(os, "O_BINARY", 0)


def make_private_folder(path: Path) -> None:
    """The folder exists, durably; a new one is its owner's alone (mode 0700; Windows goes by the
    parent's rights)."""
    if not path.is_dir():
        make_folder(path)
        path.chmod(0o700)


def open_private(path: Path, flags: int) -> int:
    """A descriptor; a file that is created by it is its owner's alone from the first instant."""
    return os.open(path, flags | _BINARY, OWNER_ONLY)


def write_private(path: Path, data: bytes) -> None:
    """Replace the file's content atomically and durably.

    Raises:
        DiskFullError: if there is no room; the old content is intact.
    """
    staging = path.with_name(f".{path.name}.writing")
    with disk_full_explained(path):
        try:
            descriptor = open_private(staging, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            staging.replace(path)
            sync_folder(path.parent)
        finally:
            staging.unlink(missing_ok=True)


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """All of the bytes are at the offset, not yet synced."""
    view = memoryview(data)
    while view:
        if hasattr(os, "pwrite"):
            written = os.pwrite(descriptor, view, offset)
        else:  # Windows
            os.lseek(descriptor, offset, os.SEEK_SET)
            written = os.write(descriptor, view)
        view, offset = view[written:], offset + written


def sync_data(descriptor: int) -> None:
    """The file's content is on the disk, and of the rest what is needed to read it."""
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)


def require_private(path: Path) -> None:
    """Only the owner may read or write the file.

    Raises:
        AuditError: if its mode lets others in. Windows has no such modes: nothing is checked there.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise AuditError(
            f"{path}: must be readable by its owner alone, mode is {mode:04o}; run: chmod 600 {path}"
        )
