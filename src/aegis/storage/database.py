"""SQLite files of ours: read where nothing can be written, and a full disk told from damage."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aegis.errors import BadInputError
from aegis.storage.files import disk_full_explained, free_space, sync_folder

_NO_ROOM_BYTES = 1 << 20
_PLACE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)


@contextlib.contextmanager
def writing_to(path: Path, schema: str) -> Iterator[sqlite3.Connection]:
    """Yield a connection whose transaction is on the disk at the end, and undone by an error.

    Raises:
        DiskFullError, BadInputError: as `place_explained` does.
        sqlite3.DatabaseError: if the file is damaged.
    """
    fresh = not path.exists()
    with place_explained(path), contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if fresh:
            database.executescript(schema)
            sync_folder(path.parent)
        with database:
            yield database


@contextlib.contextmanager
def reading_from(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection to read with; where SQLite cannot write its own files, one to a copy.

    Raises:
        FileNotFoundError: if there is no such file.
        sqlite3.DatabaseError: if it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    with contextlib.ExitStack() as stack:
        if not all(os.access(place, os.W_OK) for place in (path, path.parent)):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for suffix in ("", "-wal"):  # the newest transactions may be in the log alone
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(f"{path}{suffix}", folder / f"copy{suffix}")
            path = folder / "copy"
        uri = f"{path.absolute().as_uri()}?mode=rw"
        database = sqlite3.connect(uri, uri=True, timeout=30)
        yield stack.enter_context(contextlib.closing(database))


@contextlib.contextmanager
def place_explained(path: Path) -> Iterator[None]:
    """Name the remedy where the disk is full or may not be written.

    Raises:
        DiskFullError: if there is no room; what the file held is intact.
        BadInputError: if the file cannot be opened or written where it is.
    """
    with disk_full_explained(path):
        try:
            yield
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            # Where a file of its own cannot grow, SQLite speaks of an I/O error.
            unclear = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
            if unclear and free_space(path.parent) < _NO_ROOM_BYTES:
                raise OSError(errno.ENOSPC, "No space left on device") from error
            if code in _PLACE:
                reason = f"cannot be written where it is ({error})"
                raise BadInputError(
                    f"{path}: {reason}; name a place where you may write"
                ) from error
            raise
