"""The record of one run: which stages it has and which are done, since when, by which process, and
where their artifacts are.

`session.db` (SQLite) is the record; `session_info.json` says the same for people and is written
after it. `config.yaml` holds the settings, defaults included; `events.jsonl` what happened. Times
are UTC.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from aegis.errors import ArtifactError
from aegis.runs.database import find_damage, reading_from, writing_to
from aegis.runs.events import EVENTS, TakenOver, append_event, regular, utc_now
from aegis.runs.process import Process, is_alive, this_process
from aegis.storage.files import make_folder, set_aside, sync_folder, write_json, write_text

RECORD, DATABASE, LATEST, CONFIG = "session_info.json", "session.db", "latest", "config.yaml"
VERSION = 2
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, sqlite3.Error)
_TABLES = ("session", "attempts", "snapshots")  # the first one is never empty
_SCHEMA = """
CREATE TABLE IF NOT EXISTS session (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, started TEXT NOT NULL, ended TEXT, outcome TEXT,
    pid INTEGER NOT NULL, process_started REAL NOT NULL, boot TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, path TEXT NOT NULL, step INTEGER NOT NULL,
    saved TEXT NOT NULL, unix REAL NOT NULL, seconds REAL NOT NULL, bytes INTEGER NOT NULL);
"""


@dataclass
class StageRecord:
    """One stage: `pending`, `running`, `stopped` by the user, `completed` or `failed`.

    `steps`: its parts with their state and metrics, where it has parts.
    """

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
        created: with `number`, which grows from session to session, says which one is newer.
        process: the process that worked on it last.
        command: `argv` (after the program's name) and `cwd` with which it was started, for whoever
            resumes it.
        licence: of the base, its terms, and when the user accepted it; {} where nobody has to.
        version: of the record; 1 is an AEGIS that wrote local times and no `config.yaml`.
        notes: what was found damaged or out of place, and what is done about it; not kept.
    """

    session_id: str
    folder: Path
    config_fingerprint: str
    stage: str = "init"
    created: str = ""
    updated: str = ""
    process: Process | None = None
    command: dict[str, Any] = field(default_factory=dict)
    licence: dict[str, str] = field(default_factory=dict)
    stages: list[StageRecord] = field(default_factory=list)
    number: int = 0
    version: int = 1
    notes: list[str] = field(default_factory=list, compare=False)

    def save(self) -> None:
        self.updated, self.version = utc_now(), VERSION
        content = {**self.to_json(), "folder": None}
        del content["notes"]
        with self._database() as database:
            rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in content.items()]
            database.executemany("INSERT OR REPLACE INTO session VALUES (?, ?)", rows)
        write_json(self.folder / RECORD, content)

    def to_json(self) -> dict[str, Any]:
        """Return the whole record; artifact paths are relative to the session's folder."""
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

    def take_over(self, command: dict[str, Any], *, settings: str | None = None) -> str | None:
        """Make this process the one that works on the session, and return for the user what the
        last one left undone.

        The caller holds the session's lock, so whatever is still marked as running belongs to a
        dead process.

        Args:
            settings: what `config.yaml` shall hold; None leaves it alone.
        """
        self._repair()
        if settings is not None:
            self.write_settings(settings)
        running = [stage for stage in self.stages if stage.state == "running"]
        dead, self.process, self.command = self.process, this_process(), command
        for stage in running:
            stage.state = "stopped"
        self.save()
        if not running:
            return None
        who = f"process {dead.pid}" if dead else "an earlier process"
        text = f"{who} ended in the middle of {running[0].name} without saying so; "
        text += "going on from what it saved"
        with self._database() as database:
            database.execute("UPDATE attempts SET outcome = 'cut off' WHERE outcome IS NULL")
        append_event(self.folder, TakenOver(text=text))
        return text

    def write_settings(self, text: str) -> None:
        """Have `config.yaml` hold this text, durably; nothing is written if it does already."""
        path = self.folder / CONFIG
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)

    def _repair(self) -> None:
        """Set aside a record that is damaged; the next save makes one of what this one holds."""
        if find_damage(self._path, _TABLES):
            if self._path.exists():
                set_aside(self._path)
            for suffix in ("-wal", "-shm"):
                (self.folder / f"{DATABASE}{suffix}").unlink(missing_ok=True)
        for path in (self.folder / name for name in (RECORD, CONFIG, EVENTS)):
            if path.exists() and not path.is_file():  # a file cannot take a folder's place
                set_aside(path)

    def begin_attempt(self, stage: str) -> int:
        """Record that this process starts on a stage; return the number for `end_attempt`."""
        me = self.process or this_process()
        row = {"stage": stage, "started": utc_now(), "pid": me.pid}
        row |= {"process_started": me.started, "boot": me.boot}
        return self._insert("attempts", row)

    def end_attempt(self, attempt: int, outcome: str) -> None:
        with self._database() as database:
            row = (utc_now(), outcome, attempt)
            database.execute("UPDATE attempts SET ended = ?, outcome = ? WHERE id = ?", row)

    def add_snapshot(self, stage: str, path: Path, *, step: int, seconds: float, size: int) -> None:
        """Record an acknowledged snapshot."""
        relative, sizes = (
            path.relative_to(self.folder).as_posix(),
            {"seconds": seconds, "bytes": size},
        )
        row = {"stage": stage, "path": relative, "step": step, **sizes}
        row |= {"saved": utc_now(), "unix": time.time()}
        self._insert("snapshots", row)

    def rows(self, table: str, *, last: int = 20) -> list[dict[str, Any]]:
        """Return the newest readable rows of `attempts` or `snapshots`, oldest first."""
        if table not in ("attempts", "snapshots"):
            raise ValueError(f"no such table: {table}")
        with contextlib.suppress(OSError, sqlite3.Error), reading_from(self._path) as database:
            database.row_factory = sqlite3.Row
            query = f"SELECT * FROM {table} ORDER BY id DESC LIMIT ?"
            return [dict(row) for row in reversed(database.execute(query, (last,)).fetchall())]
        return []

    def _insert(self, table: str, row: dict[str, Any]) -> int:
        columns, places = ", ".join(row), ", ".join("?" * len(row))
        with self._database() as database:
            query = f"INSERT INTO {table} ({columns}) VALUES ({places})"
            return int(database.execute(query, tuple(row.values())).lastrowid or 0)

    @property
    def _path(self) -> Path:
        return self.folder / DATABASE

    def _database(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return writing_to(self._path, _SCHEMA)


def open_session(
    runs: Path,
    *,
    config_fingerprint: str,
    resume: bool,
    stages: Sequence[str] = (),
    settings: str | None = None,
) -> Session:
    """Return the newest session of this config, or a new one; `runs/latest` leads to it.

    Args:
        runs: the folder of all sessions.
        config_fingerprint: sessions of other configs are left alone.
        resume: False starts anew whatever is there.
        stages: of the run, in order; a session that was begun with others has these from now on.
        settings: the text of a new session's `config.yaml`.
    """
    session = newest(runs, config_fingerprint=config_fingerprint) if resume else None
    notes = _left_alone(runs) if resume and session is None else []
    if session is None:
        records = [StageRecord(name) for name in stages]
        session = _create(runs, config_fingerprint, records, settings)
    elif stages:
        known = {record.name: record for record in session.stages}
        session.stages = [known.get(name, StageRecord(name)) for name in stages]
    session.notes += notes + _point_latest(runs, session.folder)
    return session


def newest(runs: Path, *, config_fingerprint: str | None = None) -> Session | None:
    """Return the newest readable session, of one config or of any."""
    for folder in session_folders(runs):
        with contextlib.suppress(ArtifactError):
            session = load(folder)
            if config_fingerprint in (None, session.config_fingerprint):
                return session
    return None


def session_folders(runs: Path) -> list[Path]:
    """Return the folders of all sessions, newest first by when they were created.

    Names do not count: they may tell the time of another zone. Folders without a readable record
    come last.
    """
    return sorted(runs.glob("aegis_v2_*"), key=_age_key, reverse=True)


def load(folder: Path) -> Session:
    """Read a session's record: the database, or session_info.json where that is gone or damaged.

    Raises:
        ArtifactError: if the folder holds no readable record, or one of a later AEGIS.
    """
    folder = folder.resolve()
    try:
        damage = find_damage(folder / DATABASE, _TABLES)
    except (OSError, sqlite3.Error) as error:
        damage = f"cannot be read ({error})"
    for read in (_from_json, _from_database) if damage else (_from_database, _from_json):
        with contextlib.suppress(*_UNREADABLE):
            raw = read(folder)
            if raw.get("version", 1) > VERSION:
                break
            session = _parse(raw, folder)
            if damage:
                session.notes.append(
                    f"{DATABASE} {damage}: {RECORD} tells how the run stands, and `aegis run` "
                    "goes on from there"
                )
            return session
        damage = damage or "holds no record (a value is missing, or of a wrong type)"
    else:
        raise ArtifactError(
            f"{folder}: no readable session record; give a folder that `aegis run` wrote"
        )
    raise ArtifactError(f"{folder}: the record was written by a later AEGIS; update this one")


_SESSION = TypeAdapter(Session)


def _from_database(folder: Path) -> dict[str, Any]:
    with reading_from(folder / DATABASE) as database:
        rows = database.execute("SELECT key, value FROM session")
        return {key: json.loads(value) for key, value in rows}


def _from_json(folder: Path) -> dict[str, Any]:
    return json.loads(regular(folder / RECORD).read_text(encoding="utf-8"))


def _parse(raw: dict[str, Any], folder: Path) -> Session:
    return _SESSION.validate_python({"stages": None, **raw, "folder": folder})


def _age_key(folder: Path) -> tuple[datetime, int, str]:
    for read in (_from_json, _from_database):
        with contextlib.suppress(*_UNREADABLE):
            raw = read(folder)
            created = datetime.fromisoformat(raw["created"]).astimezone(UTC)
            return created, int(raw.get("number", 0)), folder.name
    return datetime.min.replace(tzinfo=UTC), 0, folder.name


def _create(
    runs: Path, config_fingerprint: str, stages: list[StageRecord], settings: str | None
) -> Session:
    make_folder(runs)
    now, suffix = datetime.now(UTC), 0
    keys = [_age_key(folder) for folder in session_folders(runs)[:1]]
    while True:
        name = f"aegis_v2_{now:%Y%m%d_%H%M%S}" + (f"_{suffix}" if suffix else "")
        try:
            (runs / name).mkdir()
            break
        except FileExistsError:
            suffix += 1
    sync_folder(runs)
    # A clock that was set back must not make the new session older than the one before it.
    created, number = max([now, *(key[0] for key in keys)]), max([0, *(key[1] for key in keys)]) + 1
    session = Session(name, (runs / name).resolve(), config_fingerprint, stages=stages)
    session.number = number
    session.created = created.isoformat(timespec="microseconds").replace("+00:00", "Z")
    if settings is not None:
        session.write_settings(settings)
    session.save()
    return session


def _left_alone(runs: Path) -> list[str]:
    """Say with which unfinished work a new session does not go on."""
    others, notes = list[str](), list[str]()
    for folder in session_folders(runs):
        if not any(folder.glob("checkpoints/*/*")):
            continue
        try:
            others += [] if load(folder).finished else [folder.name]
        except ArtifactError as error:
            notes.append(f"{error}; its finished artifacts are used, its snapshots are not")
    if others:
        notes.append(f"a new session: {others[0]} is unfinished and of other settings; it stays")
    return notes


def _point_latest(runs: Path, folder: Path) -> list[str]:
    """Have `runs/latest` lead to the session: a link, or a file with its name (Windows)."""
    link, staging, notes = runs / LATEST, runs / f".{LATEST}.writing", []
    if link.is_dir() and not link.is_symlink():
        notes = [f"{link} was a folder and no link: it is {set_aside(link, 'folder').name} now"]
    staging.unlink(missing_ok=True)
    try:
        staging.symlink_to(folder.name, target_is_directory=True)
    except OSError:
        staging.write_text(folder.name, encoding="utf-8")
    os.replace(staging, link)
    return notes


def locate(path: Path) -> Path:
    """Return the path, following a `runs/latest` in it that is a file instead of a link.

    Where it is gone, or leads nowhere, the newest session stands for it.
    """
    for parent in (path, *path.parents):
        if parent.name != LATEST or parent.is_dir():
            continue
        names, said = [folder.name for folder in session_folders(parent.parent)], ""
        if parent.is_file():
            said = parent.read_text(encoding="utf-8", errors="replace").strip()
        if names:
            name = said if said in names else names[0]
            return parent.parent / name / path.relative_to(parent)
    return path
