"""What `events.jsonl` tells of a run, read on from where the last look ended."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aegis.runs.events import (
    EVENTS,
    ArtifactReused,
    ArtifactWritten,
    Event,
    LogMessage,
    Metrics,
    Progress,
    SessionEnded,
    SnapshotSaved,
    StageBegun,
    StageEnded,
    TakenOver,
    TrainingBegun,
    WatcherAction,
    parse_event,
    regular,
)
from aegis.web.curves import Curve

_MOST_LINES, _MOST_CURVES, _MOST_RUNS = 300, 200, 16
_BAD_EVENT = (TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class LogLine:
    """One line of the log; `level`: info or warning."""

    at: str
    text: str
    level: str = "info"


@dataclass
class RunHistory:
    """A run's events in bounded memory: curves thinned out, the newest lines of the log.

    Args:
        curves: by training, then by the value's name.
        done: steps done and planned, by training.
    """

    folder: Path
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    done: dict[str, tuple[int, int]] = field(default_factory=dict)
    progress: Progress | None = None
    snapshot: SnapshotSaved | None = None
    log: deque[LogLine] = field(default_factory=lambda: deque(maxlen=_MOST_LINES))
    warnings: deque[LogLine] = field(default_factory=lambda: deque(maxlen=_MOST_LINES))
    offset: int = 0
    file: tuple[int, int] | None = None

    def read_on(self) -> None:
        """Take in what was written since; begin anew if the file is another one or has shrunk."""
        try:
            stream = regular(self.folder / EVENTS).open("rb")
        except OSError:
            return
        with stream:
            stat = (self.folder / EVENTS).stat()
            file = (stat.st_dev, stat.st_ino)
            if file != self.file or stat.st_size < self.offset:
                vars(self).update(vars(RunHistory(self.folder, file=file)))
            stream.seek(self.offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    break  # half-written: it is read once it is whole
                self.offset += len(line)
                if event := parse_event(line):
                    with contextlib.suppress(*_BAD_EVENT):
                        self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case Metrics():
                self._measure(event)
            case TrainingBegun():
                self.done[event.training] = (event.done, event.steps)
            case Progress():
                self.progress = event
            case SnapshotSaved():
                self.snapshot = event
                self._tell(event, f"snapshot {event.path} at step {event.number}")
            case LogMessage():
                self._tell(event, event.text, level=event.level)
            case StageBegun():
                self._tell(event, f"{event.stage} begins")
            case StageEnded() if event.error:
                self._tell(event, f"{event.stage} {event.outcome}: {event.error}", level="warning")
            case StageEnded():
                self._tell(event, f"{event.stage} {event.outcome} after {event.seconds:.0f} s")
            case ArtifactWritten():
                self._tell(event, f"{event.name} written in {event.seconds:.0f} s")
            case ArtifactReused():
                self._tell(event, f"{event.name} taken over from {event.session_id}")
            case TakenOver() | WatcherAction():
                self._tell(event, event.text, level="warning")
            case SessionEnded():
                self.progress = None
                self._tell(event, f"session {event.outcome} after {event.seconds:.0f} s")

    def _measure(self, event: Metrics) -> None:
        curves = self.curves.setdefault(event.training, {})
        self.done[event.training] = (event.step, event.steps)
        for name, value in event.values.items():
            if name in curves or len(curves) < _MOST_CURVES:
                curves.setdefault(name, Curve()).add(event.step, value)

    def _tell(self, event: Event, text: str, *, level: str = "info") -> None:
        line = LogLine(event.at, text, level)
        self.log.append(line)
        if level == "warning":
            self.warnings.append(line)


class Histories:
    """The histories of the runs looked at last, each read on at every look."""

    def __init__(self) -> None:
        self._lock, self._kept = threading.Lock(), OrderedDict[Path, RunHistory]()

    @contextlib.contextmanager
    def reading(self, folder: Path) -> Iterator[RunHistory]:
        """Yield the run's history as of now; it stays as it is meanwhile."""
        with self._lock:
            history = self._kept.setdefault(folder, RunHistory(folder))
            self._kept.move_to_end(folder)
            while len(self._kept) > _MOST_RUNS:
                self._kept.popitem(last=False)
            history.read_on()
            yield history
