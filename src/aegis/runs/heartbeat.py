"""Signs of life for `aegis status` and the watcher; never synced: they are not work."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from aegis.runs.events import Event, Progress, StageBegun, regular

HEARTBEAT = "heartbeat.json"
_EVERY_S = 1.0


@dataclass(frozen=True)
class Beat:
    """`count` grows with each; `time`: seconds since the epoch; `left_s`: seconds to `total`."""

    count: int
    time: float
    stage: str
    doing: str
    done: int
    total: int
    left_s: float | None
    note: str


_BEAT = TypeAdapter(Beat)


class Heartbeat:
    """Subscriber that writes the newest beat, at most once a second for the same label."""

    def __init__(
        self, folder: Path, stage: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path, self.stage, self.clock = folder / HEARTBEAT, stage, clock
        self._count, self._written, self._begun = 0, -_EVERY_S, 0.0
        self._first = Progress(label="", done=0, total=0)
        self(Progress(label="starting", done=0, total=0))

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageBegun):
            self.stage = event.stage
        if not isinstance(event, Progress):
            return
        now, is_new = self.clock(), event.label != self._first.label
        if is_new or event.done < self._first.done:
            self._begun, self._first = now, event
        if not is_new and now - self._written < _EVERY_S and event.done < event.total:
            return
        self._written, self._count = now, self._count + 1
        done, remaining = event.done - self._first.done, event.total - event.done
        left_s = (now - self._begun) / done * remaining if done else None
        position = (event.label, event.done, event.total, left_s, event.note)
        self._write(Beat(self._count, time.time(), self.stage, *position))

    def _write(self, beat: Beat) -> None:
        staging = self.path.with_name(f".{HEARTBEAT}.writing")
        with contextlib.suppress(OSError):  # a full disk must not end a run over a sign of life
            staging.write_text(json.dumps(asdict(beat), ensure_ascii=False), encoding="utf-8")
            os.replace(staging, self.path)


def read_beat(folder: Path) -> Beat | None:
    """Return the newest beat of a session; None where there is none that can be read."""
    try:
        return _BEAT.validate_json(regular(folder / HEARTBEAT).read_bytes())
    except (OSError, ValueError):
        return None
