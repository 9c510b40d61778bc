"""The runs of a folder, a row each, damaged ones included."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from aegis.errors import AegisError, BadInputError
from aegis.inputs.strict_yaml import read_yaml
from aegis.runs.events import EVENTS
from aegis.runs.health import read_status
from aegis.runs.record import CONFIG, DATABASE, RECORD, load, session_folders

METRICS = "results/candidate/metrics.json"
_MOST_BYTES = 1 << 22
_FINAL = ("finished", "failed", "stopped", "dead", "unreadable")


class Rate(BaseModel):
    """A share with its interval."""

    value: float
    n: int
    interval: tuple[float, float]


class Quality(BaseModel):
    """What a run's report says of the decisions, as far as a row shows it."""

    macro_f1: Rate
    miss_rate: Rate
    over_refusal_rate: Rate
    confidence: float


@dataclass(frozen=True)
class RunRow:
    """A run as the list shows it.

    Args:
        state: as `aegis watch` tells it, or `unreadable`; `evidence` says why.
        quality: None before the run has judged its test split.
    """

    name: str
    state: str
    evidence: str
    created: str = ""
    stage: str = ""
    base: str = ""
    quality: Quality | None = None

    @property
    def ended(self) -> bool:
        return self.state in _FINAL


class RunList:
    """The runs of a folder; those that have ended are read anew only where a file has changed."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._ended: dict[Path, tuple[list[tuple[int, int]], RunRow]] = {}

    def folder(self, name: str) -> Path:
        """Return the folder of a run.

        Raises:
            BadInputError: if there is none of this name; no other folder can be reached.
        """
        for folder in session_folders(self.runs):
            if folder.name == name:
                return folder
        raise BadInputError(f"{name}: there is no such run here; it was moved or removed")

    def rows(self, *, most: int = 200) -> tuple[list[RunRow], int]:
        """Return the newest rows, newest first, and how many runs there are."""
        folders = session_folders(self.runs)
        return [self.row(folder) for folder in folders[:most]], len(folders)

    def row(self, folder: Path) -> RunRow:
        """Return a run's row; one that cannot be read says why."""
        version = [_version(folder / name) for name in (RECORD, DATABASE, EVENTS, METRICS)]
        known, row = self._ended.get(folder, (None, None))
        if row is None or known != version:
            row = _read_row(folder)
            self._ended.pop(folder, None)
            if row.ended:
                self._ended[folder] = (version, row)
        return row


def _read_row(folder: Path) -> RunRow:
    try:
        session, status = load(folder), read_status(folder)
    except (AegisError, OSError) as error:
        return RunRow(folder.name, "unreadable", str(error))
    return RunRow(
        *(folder.name, status.state, status.evidence),
        created=session.created,
        stage=status.stage or session.stage,
        base=read_base(folder),
        quality=read_quality(folder),
    )


def read_base(folder: Path) -> str:
    """Return the run's base as its settings name it; empty where they cannot be read."""
    try:
        settings = read_yaml(read_file(folder / CONFIG), CONFIG)
        return str(settings.get("base", "")) if isinstance(settings, dict) else ""
    except (AegisError, OSError, ValueError):
        return ""


def read_quality(folder: Path) -> Quality | None:
    """Return what the run measured, if it did."""
    try:
        return Quality.model_validate(json.loads(read_file(folder / METRICS)))
    except (OSError, ValueError, ValidationError, RecursionError):
        return None


def read_file(path: Path) -> str:
    """Return the text of a file of a run, as much of it as can be meant."""
    if not path.is_file():
        raise FileNotFoundError(path)
    with path.open("rb") as stream:
        return stream.read(_MOST_BYTES).decode("utf-8")


def _version(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size
