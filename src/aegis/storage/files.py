"""Write files so that a power cut leaves the old content or the new, never a mixture."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from aegis.errors import DiskFullError, is_disk_full

_DESCRIPTOR = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/(self|thread-self|\d+)/fd/\d+")
_OWN_FILE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # no link, no pipe


def open_descriptor(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a file for system calls, for bytes on Windows too; `mode` is that of a new file."""
    return os.open(path, flags | getattr(os, "O_BINARY", 0), mode)


@contextlib.contextmanager
def descriptor_of(path: Path, flags: int) -> Iterator[int]:
    """Open an existing file or folder for system calls and close it afterwards."""
    descriptor = open_descriptor(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    with descriptor_of(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


def start_sync(path: Path) -> None:
    """Have Linux begin to write the file's content to the disk, without waiting for it.

    The advice that content is no longer needed starts the writing of what is not on the disk yet.
    """
    if hasattr(os, "posix_fadvise"):
        with descriptor_of(path, os.O_RDONLY) as descriptor:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def sync_folder(path: Path) -> None:
    """Wait until the folder's names are on the disk; Windows has no call for it and a journal."""
    if os.name != "nt":
        with descriptor_of(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            os.fsync(descriptor)


def make_folder(path: Path) -> None:
    """Make the folder and its parents, durably."""
    for folder in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def write_synced(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write the content to the disk; the file's name is not there yet, and its old content is lost.

    Args:
        mode: permissions from the first instant, if the file is new.
    """
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of the bytes at the offset, without a sync."""
    view = memoryview(data)
    while view:
        if hasattr(os, "pwrite"):
            written = os.pwrite(descriptor, view, offset)
        else:  # Windows
            os.lseek(descriptor, offset, os.SEEK_SET)
            written = os.write(descriptor, view)
        view, offset = view[written:], offset + written


def require_in_place(descriptor: int, path: Path) -> os.stat_result:
    """Return the open file's status, if it is the one that others find under the path.

    Raises:
        OSError: if it was moved away, removed or replaced.
    """
    status = os.fstat(descriptor)
    if not os.path.samestat(status, os.stat(path)):
        raise OSError(errno.ESTALE, "was replaced while it was being written", str(path))
    return status


def sync_data(descriptor: int) -> None:
    """Wait until the file's content, and what is needed to read it, is on the disk."""
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace the file's whole content, atomically and durably.

    Raises:
        DiskFullError: if there is no room; the old content is intact.
    """
    staging = path.with_name(f".{path.name}.writing")
    with disk_full_explained(path):
        try:
            write_synced(staging, data, mode)
            staging.replace(path)
            sync_folder(path.parent)
        finally:
            staging.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file's content by UTF-8 text, as `write_bytes` does."""
    write_bytes(path, text.encode())


def partial_of(path: Path) -> Path:
    """Return where a result stands that is not whole yet, and stays if it never is."""
    return path.with_name(f"{path.name}.partial")


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[BinaryIO]:
    """Open what the user named for a result: a file gets its new content whole, when the block ends
    well, or stays as it was, and what there is stays in NAME.partial; links are followed; a device
    or a pipe is written through.

    Raises:
        DiskFullError: if there is no room; an older file is intact.
    """
    kind = kind_of(path)
    if (kind and not stat.S_ISREG(kind)) or _DESCRIPTOR.fullmatch(str(path.absolute())):
        with path.open("ab") as stream:  # `>> FILE` may stand behind /dev/stdout
            yield stream
        return
    target = path.resolve()
    make_folder(target.parent)
    with disk_full_explained(target):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _OWN_FILE
        with open(open_descriptor(partial_of(target), flags), "wb") as stream:
            yield stream
        sync_file(partial_of(target))
        partial_of(target).replace(target)
        sync_folder(target.parent)


def write_output(path: Path, text: str) -> None:
    """Write the text to what the user named, as `open_output` does."""
    with open_output(path) as stream:
        stream.write(text.encode())


def kind_of(path: Path) -> int:
    """Return the file's type, following links, as `stat` has it; 0 if nothing is there."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def write_json(path: Path, value: Any) -> None:
    """Replace the file's content by indented JSON, as `write_bytes` does."""
    write_text(path, to_json(value))


def set_aside(path: Path, suffix: str = "damaged", *, name: str | None = None) -> Path:
    """Rename what is in the way, after `name` if given, and return its new place."""
    number, target = 1, path.with_name(f"{name or path.name}.{suffix}")
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{name or path.name}.{suffix}-{number}")
    return path.rename(target)


def to_json(value: Any) -> str:
    """Return indented JSON for people and programs; NaN is not JSON and raises ValueError."""
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def hash_file(path: Path) -> str:
    """Return the sha256 of the content, in hexadecimal."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """Return the sha256 of the parts' canonical JSON, the same on every machine."""
    text = json.dumps(
        parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def free_space(folder: Path) -> int:
    """Return the bytes free where the folder is, or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed_bytes: int) -> None:
    """Check that the folder's file system has room for `needed_bytes` and 64 MiB to spare.

    Raises:
        DiskFullError: if it has not; nothing has been written.
    """
    free = free_space(folder)
    if free < needed_bytes + (64 << 20):
        raise DiskFullError(
            f"{folder}: {needed_bytes / 2**20:.0f} MiB are needed and {free / 2**20:.0f} MiB are "
            "free; free some room and run the same command again"
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
                f"{path}: the disk is full; what was finished before is intact. "
                "Free some room and run the same command again"
            ) from error
        raise
