"""The one channel through which a run tells how it goes; docs/events.md is its schema.

Work emits events; bars, heartbeat, progress log, trackers, the watcher and the page read them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

EVENTS = "events.jsonl"
SCHEMA_VERSION = 1
_PROGRESS_EVERY_S = 1.0


def utc_now() -> str:
    """Return the time in UTC as ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened; `at` in UTC. `kind` names the class in the record."""

    kind: ClassVar[str] = ""
    at: str = field(default_factory=utc_now)


@dataclass(frozen=True, kw_only=True)
class SessionBegun(Event):
    """A process begins or takes up a session."""

    kind = "session_begun"
    session_id: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class SessionEnded(Event):
    """The process is done with it; `outcome`: completed, stopped or failed."""

    kind = "session_ended"
    outcome: str
    seconds: float
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class TakenOver(Event):
    """An earlier process had ended without saying so; this one goes on from what it saved."""

    kind = "taken_over"
    text: str


@dataclass(frozen=True, kw_only=True)
class WatcherAction(Event):
    """What a watcher did about the run; `resumed`: it started it again."""

    kind = "watcher_action"
    text: str
    resumed: bool = False


@dataclass(frozen=True, kw_only=True)
class StageBegun(Event):
    """A stage of the run begins."""

    kind = "stage_begun"
    stage: str


@dataclass(frozen=True, kw_only=True)
class StageEnded(Event):
    """A stage ended; `outcome`: completed, skipped (nothing to do), stopped or failed."""

    kind = "stage_ended"
    stage: str
    outcome: str
    seconds: float
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class StepBegun(Event):
    """A step of a stage begins; `fingerprint` stands for all that its result is made of."""

    kind = "step_begun"
    stage: str
    step: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class StepEnded(Event):
    """A step ended; outcomes as of `StageEnded`."""

    kind = "step_ended"
    stage: str
    step: str
    outcome: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ArtifactWritten(Event):
    """An artifact folder is whole on the disk."""

    kind = "artifact_written"
    name: str
    fingerprint: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ArtifactReused(Event):
    """An artifact was there already, in this session or in `session_id`, an earlier one."""

    kind = "artifact_reused"
    name: str
    fingerprint: str
    session_id: str


@dataclass(frozen=True, kw_only=True)
class SnapshotSaved(Event):
    """An unfinished training is on the disk as of step `number`; `path` within the session."""

    kind = "snapshot_saved"
    stage: str
    path: str
    number: int
    seconds: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class LogMessage(Event):
    """A line for the user; `level`: info or warning."""

    kind = "message"
    text: str
    level: str = "info"


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """Work moved on: `done` of `total`. `stoppable`: nothing is lost by leaving it here."""

    kind = "progress"
    label: str
    done: int
    total: int
    note: str = ""
    stoppable: bool = True


@dataclass(frozen=True, kw_only=True)
class Metrics(Event):
    """One step of a training.

    Args:
        training: sft, reward, ppo, dpo, grpo or rloo.
        step: steps done, of `steps`.
        epoch: from 1; None where a training has none.
        samples: examples or responses in this step; `tokens` in them. None: a check, not a step.
        values: by name, as trackers draw them; with `loss` among them where there is one.
    """

    kind = "metrics"
    training: str
    step: int
    steps: int
    epoch: int | None = None
    samples: int | None = None
    tokens: int | None = None
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainingBegun(Event):
    """A training begins or is taken up after `done` of `steps`.

    Args:
        history: what it has measured before, oldest first; in no record, for it is there already.
    """

    kind = "training_begun"
    training: str
    done: int
    steps: int
    history: Sequence[Metrics] = field(default=(), repr=False, metadata={"recorded": False})


KINDS: dict[str, type[Event]] = {event.kind: event for event in Event.__subclasses__()}
_FIELDS = {event: [item.name for item in fields(event)] for event in KINDS.values()}
Subscriber = Callable[[Event], None]


class Reporter:
    """Hand each event to every subscriber, in order; without subscribers, to nobody.

    A subscriber may raise to stop the work (`StoppedError`).
    """

    def __init__(self, *subscribers: Subscriber) -> None:
        self.subscribers = list(subscribers)

    def emit(self, event: Event) -> None:
        for subscriber in self.subscribers:
            subscriber(event)

    def message(self, text: str) -> None:
        """Tell the user a line."""
        self.emit(LogMessage(text=text))

    def warning(self, text: str) -> None:
        """Tell the user of something that should not be so and does not end the run."""
        self.emit(LogMessage(text=text, level="warning"))


class EventLog:
    """Append every event to `folder/events.jsonl`, a line each; progress at most once a second.

    Of each label of progress the last is written too. A disk that is full, or a folder that is
    gone, never fails the run: the events are dropped, and `say` gets one line about it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        say: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self._say, self._clock = folder / EVENTS, say, clock
        self._descriptor: int | None = None
        self._failure_reported = False
        self._label, self._written_at = "", 0.0
        self._pending: Progress | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._throttle(event)
            return
        if event.kind.endswith("_ended"):
            self._flush()
        self._append(event)

    def close(self) -> None:
        """Write what was held back and put the file on the disk."""
        self._flush()
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._descriptor)
        self._release()

    def _throttle(self, event: Progress) -> None:
        moment = self._clock()
        if event.label != self._label:
            self._flush()
            self._label, self._written_at = event.label, moment - _PROGRESS_EVERY_S
        if event.done < event.total and moment - self._written_at < _PROGRESS_EVERY_S:
            self._pending = event
            return
        self._pending, self._written_at = None, moment
        self._append(event)

    def _flush(self) -> None:
        if self._pending:
            self._append(self._pending)
        self._pending = None

    def _append(self, event: Event) -> None:
        try:
            text = json.dumps(to_record(event), ensure_ascii=False, allow_nan=False)
            line = text.encode(errors="backslashreplace") + b"\n"
            if self._descriptor is None:
                self._descriptor = _open_mended(self.path)
            if os.write(self._descriptor, line) < len(line):
                raise OSError("the line was cut off")
        except (OSError, TypeError, ValueError) as error:
            self._release()  # for the next event it is opened, and mended, again
            if not self._failure_reported:
                self._failure_reported = True
                reason = getattr(error, "strerror", None) or error
                self._say(f"{self.path}: events cannot be written ({reason}); the run goes on")

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None


def append_event(folder: Path, event: Event) -> None:
    """Add one event to a session's record, from whichever process."""
    log = EventLog(folder)
    log(event)
    log.close()


def to_record(event: Event) -> dict[str, Any]:
    """Return the event as a line of events.jsonl holds it: null for what JSON cannot say."""
    names = [item.name for item in fields(event) if item.metadata.get("recorded", True)]
    values = {name: getattr(event, name) for name in names}
    return finite({"v": SCHEMA_VERSION, "at": event.at, "kind": event.kind} | values)


AnyEvent = TypeVar("AnyEvent", bound=Event)


def read_events(folder: Path, *kinds: type[AnyEvent]) -> Iterator[AnyEvent]:
    """Yield a session's events of these classes, oldest first; of all of them where none is given.

    Lines that a power cut tore, and kinds and versions that this AEGIS does not know, are passed
    over.
    """
    try:
        file = regular(folder / EVENTS).open("rb")
    except OSError:
        return
    # The watcher asks every few seconds for a few of very many lines: those alone are parsed.
    names = [
        f'"kind": "{kind}"'.encode()
        for kind, event in KINDS.items()
        if issubclass(event, kinds or Event)
    ]
    with file:
        for line in file:
            if kinds and not any(name in line for name in names):
                continue
            event = parse_event(line)
            if isinstance(event, kinds or Event):
                yield cast(AnyEvent, event)


def parse_event(line: bytes) -> Event | None:
    """Return the event of a line; None if it is torn, or of a kind or version not known here."""
    try:
        raw = json.loads(line)
        event = KINDS[raw["kind"]]
        if raw["v"] != SCHEMA_VERSION:
            return None
        return event(**{name: raw[name] for name in _FIELDS[event] if name in raw})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def regular(path: Path) -> Path:
    """Return the path of a file to be read; FileNotFoundError if it is none. A pipe in its place
    would be waited for without end."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return path


def _open_mended(path: Path) -> int:
    """Open the file for appending, without the unfinished line that a power cut may have left."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    size = end = os.lseek(descriptor, 0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        os.lseek(descriptor, start, os.SEEK_SET)
        newline = os.read(descriptor, end - start).rfind(b"\n")
        end = start + newline + 1
        if newline >= 0:
            break
    if end < size:  # a whole file is left alone: another process may add to it this moment
        os.ftruncate(descriptor, end)
    return descriptor


def finite(value: Any) -> Any:
    """Return the value with null for every NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
