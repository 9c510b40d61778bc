"""Signs of life: what a run is doing now, for `aegis status` and the watcher. Never synced: they
are of life, not of work."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "heartbeat.json"
_EVERY_S = 1.0


@dataclass(frozen=True)
class Beat:
    """One sign of life. `count` grows with each; `time`: seconds since the epoch; `left_s`:
    estimated seconds to `total`."""

    count: int
    time: float
    stage: str
    doing: str
    done: int
    total: int
    left_s: float | None
    note: str


class Heartbeat:
    """Writes the newest beat of a session: at most once a second, and whenever something else is
    being done."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.clock = folder / FILE, clock
        self.count, self._written = 0, -_EVERY_S
        self._doing, self._begun, self._first = "", 0.0, 0

    def __call__(self, stage: str, doing: str, done: int, total: int, note: str = "") -> None:
        """Something moved on: `done` of `total`."""
        now, fresh = self.clock(), doing != self._doing
        if fresh or done < self._first:
            self._doing, self._begun, self._first = doing, now, done
        if not fresh and now - self._written < _EVERY_S and done < total:
            return
        self._written, self.count = now, self.count + 1
        moved = done - self._first
        left = (now - self._begun) / moved * (total - done) if moved else None
        beat = Beat(self.count, time.time(), stage, doing, done, total, left, note)
        staging = self.path.with_name(f".{FILE}.writing")
        with contextlib.suppress(
            OSError
        ):  # a full disk must not end a run for want of a sign of life
            staging.write_text(json.dumps(asdict(beat), ensure_ascii=False), encoding="utf-8")
            os.replace(staging, self.path)


def read_beat(folder: Path) -> Beat | None:
    """The newest beat of a session; None where there is none that can be read."""
    try:
        return Beat(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
