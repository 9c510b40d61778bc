"""Where a user wants a result: checked before the work, and nothing destroyed by writing it."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from aegis.errors import BadInputError
from aegis.storage.files import kind_of, partial_of


def require_output_file(path: Path, *, inputs: Iterable[Path] = ()) -> None:
    """Check that a result may be written to `path`: a file, new or not, a device or a pipe.

    Args:
        inputs: files, or folders with all that is in them, that must stay as they are.

    Raises:
        BadInputError: if it may not; nothing has been touched.
    """
    require_place(path)
    kind = kind_of(path)
    if stat.S_ISDIR(kind):
        raise BadInputError(f"{path}: is a folder; give a file")
    if stat.S_ISBLK(kind) or stat.S_ISSOCK(kind):
        raise BadInputError(f"{path}: is a disk or a socket; give a file or a pipe")
    target = path.resolve()
    partial = partial_of(target)
    if partial.is_symlink() or (partial.exists() and not partial.is_file()):
        raise BadInputError(f"{partial}: is no file and in the way of {path}; move it elsewhere")
    for source in inputs:
        if source.resolve() in (target, partial, *target.parents):
            raise BadInputError(f"{path}: would overwrite the input {source}; give another file")


def require_place(path: Path) -> None:
    """Check that something can be made at `path`, whose folders need not be there yet.

    Raises:
        BadInputError: if it cannot; nothing has been touched.
    """
    try:
        kind = kind_of(path)
        if kind and not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
            return  # a device or a pipe: nothing is made beside it
        target = path.resolve()
        if not target.name:
            raise BadInputError(f"{path}: is a whole disk; give a path below it")
        kind_of(partial_of(target))  # a name too long for the disk raises
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
