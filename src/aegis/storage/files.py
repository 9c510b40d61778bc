"""Writing files so that a power cut leaves the old content or the new, never a mixture."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aegis.errors import DiskFullError, is_disk_full


def sync_file(path: Path) -> None:
    """The file's content is on the disk."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def start_sync(path: Path) -> None:
    """The system begins to write the file's content to the disk, where it can be asked to; nobody
    waits for it here.

    On Linux, advice that the content is no longer needed starts the writing of what is not on the
    disk yet.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """The folder's names are on the disk; Windows has no such call and keeps its own journal."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """The folder exists, and so do its parents, durably."""
    missing = [path, *path.parents]
    missing = [folder for folder in missing if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def write_synced(path: Path, text: str) -> None:
    """The file's content is on the disk; its name is not yet, and what it held before may be lost
    in between."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Replace the file's whole content, atomically and durably.

    Raises:
        DiskFullError: if there is no room; the old content is intact.
    """
    staging = path.with_name(f".{path.name}.writing")
    with disk_full_explained(path):
        try:
            write_synced(staging, text)
            staging.replace(path)
            sync_folder(path.parent)
        finally:
            staging.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """As `write_text`, with the value as indented JSON."""
    write_text(path, to_json(value))


def to_json(value: Any) -> str:
    """Indented JSON for people and programs; NaN is not JSON and raises ValueError."""
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def hash_file(path: Path) -> str:
    """sha256 of the content, in hexadecimal."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """sha256 of the parts' canonical JSON: equal parts, equal fingerprint, on every machine."""
    text = json.dumps(
        parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def free_space(folder: Path) -> int:
    """Bytes free where the folder is, or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed_bytes: int) -> None:
    """There is room for `needed_bytes` in the folder's file system, plus 64 MiB to spare.

    Raises:
        DiskFullError: if there is not; nothing has been written.
    """
    free = free_space(folder)
    if free < needed_bytes + (64 << 20):
        raise DiskFullError(
            f"{folder}: {needed_bytes / 2**20:.0f} MiB are needed and {free / 2**20:.0f} MiB are free; "
            "free some room and run the same command again"
        )


@contextlib.contextmanager
def disk_full_explained(path: Path) -> Iterator[None]:
    """Turn any form of "no space left" raised inside into a DiskFullError that names the path."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"{path}: the disk is full; what was finished before is intact. Free some room and run the same command again"
            ) from error
        raise
