"""Where a user wants a result: checked before the work, and nothing destroyed by writing it."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from aegis.errors import BadInputError
from aegis.storage.files import make_folder, replacing, sync_file


def require_output_file(path: Path, *, inputs: Iterable[Path] = ()) -> None:
    """Check that a result may be written to `path`: a file, new or not, a device or a pipe.

    Args:
        inputs: files, or folders with all that is in them, that must stay as they are.

    Raises:
        BadInputError: if it may not; nothing has been touched.
    """
    require_place(path)
    kind = _kind(path)
    if stat.S_ISDIR(kind):
        raise BadInputError(f"{path}: is a folder; give a file")
    if stat.S_ISBLK(kind) or stat.S_ISSOCK(kind):
        raise BadInputError(f"{path}: is a disk or a socket; give a file or a pipe")
    for source in inputs:
        if source.resolve() in (path.resolve(), *path.resolve().parents):
            raise BadInputError(f"{path}: would overwrite the input {source}; give another file")


def require_place(path: Path) -> None:
    """Check that something can be made at `path`, whose folders need not be there yet.

    Raises:
        BadInputError: if it cannot; nothing has been touched.
    """
    try:
        kind = _kind(path)
        if kind and not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
            return  # a device or a pipe: nothing is made beside it
        target = path.resolve()
        _kind(target.with_name(f".{target.name}.writing"))  # a name too long for the disk raises
        folder = target.parent
        while not os.path.lexists(folder):
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):  # read-only, /proc and the like raise
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, to Path.resolve
        reason = getattr(error, "strerror", None) or error
        raise BadInputError(
            f"{path}: cannot be written ({reason}); give a path in a folder that you may write to"
        ) from error


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[BinaryIO]:
    """Open what the user named for a result: a file gets its new content whole, when the block ends
    well, or stays as it was; links are followed; a device or a pipe is written through.

    Raises:
        DiskFullError: if there is no room; an older file is intact.
    """
    kind = _kind(path)
    if (kind and not stat.S_ISREG(kind)) or path.absolute().is_relative_to("/dev"):
        with path.open("ab") as stream:  # `>> FILE` may stand behind /dev/stdout
            yield stream
        return
    target = path.resolve()
    make_folder(target.parent)
    with replacing(target) as staging:
        with staging.open("wb") as stream:
            yield stream
        sync_file(staging)


def write_output(path: Path, text: str) -> None:
    """Write the text to what the user named, as `open_output` does."""
    with open_output(path) as stream:
        stream.write(text.encode())


def _kind(path: Path) -> int:
    """Return the file's type, following links, as `stat` has it; 0 if nothing is there."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
