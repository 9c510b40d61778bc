"""The record of one run: which stages are done, since when, and where their artifacts are."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from aegis.durable.files import make_folder, write_json
from aegis.errors import ArtifactError

STAGES = ("deep_research_data", "data_cleansing", "so8t_ppo_training", "aegis_v2_integration")
RECORD = "session_info.json"
LATEST = "latest"


@dataclass
class StageRecord:
    """One stage: `pending`, `running`, `stopped` by the user, `completed` or `failed`."""

    name: str
    state: str = "pending"
    started: str | None = None
    seconds: float | None = None
    skipped: bool = False
    artifacts: dict[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass
class Session:
    """What `session_info.json` holds; `save` after every change. `stage`: init, a stage's name, completed or failed."""

    session_id: str
    folder: Path
    config_fingerprint: str
    stage: str = "init"
    created: str = ""
    updated: str = ""
    stages: list[StageRecord] = field(default_factory=lambda: [StageRecord(name) for name in STAGES])

    def save(self) -> None:
        self.updated = _now()
        write_json(self.folder / RECORD, {**self.to_json(), "folder": None})

    def to_json(self) -> dict[str, Any]:
        """The whole record; artifact paths are relative to the session's folder."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}

    def stage_record(self, name: str) -> StageRecord:
        return next(stage for stage in self.stages if stage.name == name)


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
    """Read a session's record.

    Raises:
        ArtifactError: if the folder holds no readable record.
    """
    folder = folder.resolve()
    try:
        raw = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        stages = [StageRecord(**stage) for stage in raw.pop("stages")]
        return Session(**{**raw, "folder": folder, "stages": stages})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder}: no readable session record; give a folder that `aegis run` wrote") from error


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
    session = Session(name, (runs / name).resolve(), config_fingerprint, created=_now())
    session.save()
    return session


def _point_latest(runs: Path, folder: Path) -> None:
    """`runs/latest` is a link to the session; where links are not allowed (Windows), a file with its name."""
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
            return parent.parent / parent.read_text(encoding="utf-8").strip() / path.relative_to(parent)
    return path


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
