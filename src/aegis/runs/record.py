"""The record of one run: which stages are done, since when, by which process, and where their
artifacts are.

`session.db` (SQLite) is the record; `session_info.json` says the same for people and is written
after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from aegis.errors import ArtifactError
from aegis.runs.process import Process, is_alive, this_process
from aegis.storage.files import disk_full_explained, make_folder, sync_folder, write_json

STAGES = ("deep_research_data", "data_cleansing", "so8t_ppo_training", "aegis_v2_integration")
RECORD, DATABASE, LATEST = "session_info.json", "session.db", "latest"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS session (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, started TEXT NOT NULL, ended TEXT, outcome TEXT,
    pid INTEGER NOT NULL, process_started REAL NOT NULL, boot TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, path TEXT NOT NULL, step INTEGER NOT NULL, saved TEXT NOT NULL,
    unix REAL NOT NULL, seconds REAL NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, at TEXT NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL);
"""


@dataclass
class StageRecord:
    """One stage: `pending`, `running`, `stopped` by the user, `completed` or `failed`. `steps`: its
    parts with their state and metrics, where it has parts."""

    name: str
    state: str = "pending"
    started: str | None = None
    seconds: float | None = None
    skipped: bool = False
    attempts: int = 0
    artifacts: dict[str, str] = field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str | None = None


@dataclass
class Session:
    """What a run has done; `save` after every change.

    Args:
        stage: init, a stage's name, completed or failed.
        process: the process that worked on it last.
        command: `argv` (after the program's name) and `cwd` with which it was started, for whoever
            resumes it.
    """

    session_id: str
    folder: Path
    config_fingerprint: str
    stage: str = "init"
    created: str = ""
    updated: str = ""
    process: Process | None = None
    command: dict[str, Any] = field(default_factory=dict)
    stages: list[StageRecord] = field(
        default_factory=lambda: [StageRecord(name) for name in STAGES]
    )

    def save(self) -> None:
        self.updated = _now()
        content = {**self.to_json(), "folder": None}
        with self._database() as database:
            rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in content.items()]
            database.executemany("INSERT OR REPLACE INTO session VALUES (?, ?)", rows)
        write_json(self.folder / RECORD, content)

    def to_json(self) -> dict[str, Any]:
        """The whole record; artifact paths are relative to the session's folder."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}

    def stage_record(self, name: str) -> StageRecord:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def finished(self) -> bool:
        return self.stage == "completed"

    @property
    def alive(self) -> bool:
        """True if the process that worked on it last still runs."""
        return self.process is not None and is_alive(self.process)

    def take_over(self, command: dict[str, Any]) -> str | None:
        """This process works on the session from now on; returns what the last one left undone, for
        the user.

        The caller holds the session's lock, so whatever is still marked as running belongs to a
        dead process.
        """
        self._repair()
        left = [stage.name for stage in self.stages if stage.state == "running"]
        dead, self.process, self.command = self.process, this_process(), command
        for name in left:
            self.stage_record(name).state = "stopped"
        self.save()
        if not left:
            return None
        who = f"process {dead.pid}" if dead else "an earlier process"
        message = (
            f"{who} ended in the middle of {left[0]} without saying so; going on from what it saved"
        )
        with self._database() as database:
            database.execute("UPDATE attempts SET outcome = 'cut off' WHERE outcome IS NULL")
        self.event("taken_over", message)
        return message

    def _repair(self) -> None:
        """A database that is none is set aside; the next save makes a new one from what this record
        holds."""
        try:
            with self._database() as database:
                sound = database.execute("PRAGMA quick_check").fetchone()[0] == "ok"
        except sqlite3.DatabaseError:
            sound = False
        if not sound:
            os.replace(self.folder / DATABASE, self.folder / f"{DATABASE}.damaged")
            for suffix in ("-wal", "-shm"):
                (self.folder / f"{DATABASE}{suffix}").unlink(missing_ok=True)

    def begin_attempt(self, stage: str) -> int:
        """Record that this process starts on a stage; returns the attempt's number for
        `end_attempt`."""
        me = self.process or this_process()
        with self._database() as database:
            found = database.execute(
                "INSERT INTO attempts (stage, started, pid, process_started, boot) VALUES (?, ?, ?, ?, ?)",
                (stage, _now(), me.pid, me.started, me.boot),
            )
            return int(found.lastrowid or 0)

    def end_attempt(self, attempt: int, outcome: str) -> None:
        with self._database() as database:
            database.execute(
                "UPDATE attempts SET ended = ?, outcome = ? WHERE id = ?",
                (_now(), outcome, attempt),
            )

    def add_snapshot(self, stage: str, path: Path, *, step: int, seconds: float, size: int) -> None:
        """Record an acknowledged snapshot."""
        row = (
            stage,
            path.relative_to(self.folder).as_posix(),
            step,
            _now(),
            datetime.now().timestamp(),
            seconds,
            size,
        )
        with self._database() as database:
            database.execute(
                "INSERT INTO snapshots (stage, path, step, saved, unix, seconds, bytes) VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    def event(self, kind: str, message: str) -> None:
        with self._database() as database:
            database.execute(
                "INSERT INTO events (at, kind, message) VALUES (?, ?, ?)", (_now(), kind, message)
            )

    def rows(self, table: str, *, last: int = 20) -> list[dict[str, Any]]:
        """The newest rows of `attempts`, `snapshots` or `events`, oldest first."""
        if table not in ("attempts", "snapshots", "events"):
            raise ValueError(f"no such table: {table}")
        with self._database() as database:
            database.row_factory = sqlite3.Row
            found = database.execute(
                f"SELECT * FROM {table} ORDER BY id DESC LIMIT ?", (last,)
            ).fetchall()
        return [dict(row) for row in reversed(found)]

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with disk_full_explained(self.folder), _open(self.folder / DATABASE) as database:
            yield database


def open_session(runs: Path, *, config_fingerprint: str, resume: bool) -> Session:
    """Return the newest session of this config, or a new one; `runs/latest` leads to it.

    Args:
        runs: the folder of all sessions.
        config_fingerprint: sessions of other configs are left alone.
        resume: False starts anew whatever is there.
    """
    session = newest(runs, config_fingerprint=config_fingerprint) if resume else None
    session = session or _create(runs, config_fingerprint)
    _point_latest(runs, session.folder)
    return session


def newest(runs: Path, *, config_fingerprint: str | None = None) -> Session | None:
    """The newest readable session by id, of one config or of any."""
    for folder in sorted(runs.glob("aegis_v2_*"), key=lambda path: path.name, reverse=True):
        try:
            session = load(folder)
        except ArtifactError:
            continue
        if config_fingerprint in (None, session.config_fingerprint):
            return session
    return None


def load(folder: Path) -> Session:
    """Read a session's record: the database, or session_info.json where the database is gone or
    damaged.

    Raises:
        ArtifactError: if the folder holds no readable record.
    """
    folder = folder.resolve()
    for read in (_from_database, _from_json):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, sqlite3.Error):
            return _parse(read(folder), folder)
    raise ArtifactError(
        f"{folder}: no readable session record; give a folder that `aegis run` wrote"
    )


def _from_database(folder: Path) -> dict[str, Any]:
    if not (folder / DATABASE).is_file():
        raise FileNotFoundError(folder / DATABASE)
    with _open(folder / DATABASE) as database:
        return {
            key: json.loads(value)
            for key, value in database.execute("SELECT key, value FROM session")
        }


def _from_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RECORD).read_text(encoding="utf-8"))


def _parse(raw: dict[str, Any], folder: Path) -> Session:
    stages = [StageRecord(**stage) for stage in raw.pop("stages")]
    process = raw.pop("process", None)
    return Session(
        **{
            **raw,
            "folder": folder,
            "stages": stages,
            "process": Process(**process) if process else None,
        }
    )


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose transaction is on the disk when the block ends, and undone if it
    raises."""
    fresh = not path.exists()
    database = sqlite3.connect(path, timeout=30)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if fresh:
            database.executescript(_SCHEMA)
            sync_folder(path.parent)
        with database:
            yield database
    finally:
        database.close()


def _create(runs: Path, config_fingerprint: str) -> Session:
    make_folder(runs)
    moment, suffix = datetime.now(), 0
    while True:
        name = f"aegis_v2_{moment:%Y%m%d_%H%M%S}" + (f"_{suffix}" if suffix else "")
        try:
            (runs / name).mkdir()
            break
        except FileExistsError:
            suffix += 1
    sync_folder(runs)
    session = Session(name, (runs / name).resolve(), config_fingerprint, created=_now())
    session.save()
    return session


def _point_latest(runs: Path, folder: Path) -> None:
    """`runs/latest` is a link to the session; where links are not allowed (Windows), a file with
    its name."""
    link, staging = runs / LATEST, runs / f".{LATEST}.writing"
    staging.unlink(missing_ok=True)
    try:
        staging.symlink_to(folder.name, target_is_directory=True)
    except OSError:
        staging.write_text(folder.name, encoding="utf-8")
    os.replace(staging, link)


def locate(path: Path) -> Path:
    """The path, with `runs/latest` in it followed where that is a file instead of a link."""
    for parent in (path, *path.parents):
        if parent.name == LATEST and parent.is_file():
            return (
                parent.parent
                / parent.read_text(encoding="utf-8").strip()
                / path.relative_to(parent)
            )
    return path


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
