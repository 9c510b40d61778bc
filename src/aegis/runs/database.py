"""SQLite files of ours: read where nothing can be written, and a full disk told from damage."""

from __future__ import annotations

import contextlib
import errno
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from aegis.errors import BadInputError
from aegis.storage.files import disk_full_explained, free_space, sync_folder

_NO_ROOM_BYTES = 1 << 20
_DAMAGE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)
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
        try:
            database = stack.enter_context(_opened(path))
        except sqlite3.OperationalError as error:
            if _code(error) not in (*_PLACE, sqlite3.SQLITE_IOERR):
                raise
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for suffix in ("", "-wal"):  # the newest transactions may be in the log alone
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(f"{path}{suffix}", folder / f"copy{suffix}")
            database = stack.enter_context(_opened(folder / "copy"))
        yield database


def find_damage(path: Path, tables: Sequence[str]) -> str:
    """Return what is wrong with a file that has these tables, the first of them with a row; empty
    if nothing is.

    Raises:
        OSError, sqlite3.Error: if it cannot be read, which says nothing about it.
    """
    if not path.is_file():
        return "is missing"
    try:
        with reading_from(path) as database:
            answer = database.execute("PRAGMA quick_check").fetchone()[0]
            rows = [database.execute(f"SELECT * FROM {table}").fetchall() for table in tables]
        answer = answer if rows[0] else "nothing is in it"
        return "" if answer == "ok" else f"is damaged ({answer})"
    except sqlite3.DatabaseError as error:
        if _code(error) not in _DAMAGE:
            raise
        return f"is damaged ({error})"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    uri = f"{path.absolute().as_uri()}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=30)) as database:
        database.execute("SELECT count(*) FROM sqlite_master")  # opens the files beside it
        yield database


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


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
            code = _code(error)
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
