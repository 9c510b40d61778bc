"""A training's progress on disk: an entry every few minutes, a summary, and warnings while the
machine is strained."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from aegis.errors import DiskFullError
from aegis.runs.machine import MachineState, machine_state
from aegis.storage.files import make_folder, write_json

FOLDER = "progress_logs"
SUMMARY = "progress_summary.json"
INTERVAL_S = 180.0
PROBE_EVERY_S = 10.0
WARNINGS_KEPT = 100


@dataclass(frozen=True)
class Thresholds:
    """A reading above its threshold is warned of once, and again only after it fell well below in
    between."""

    gpu_temperature_c: float = 75.0
    memory_percent: float = 95.0
    cpu_percent: float = 90.0


@dataclass(frozen=True)
class _Position:
    stage: str
    epoch: float | None
    step: int | None
    steps: int | None
    loss: float | None


@dataclass
class _Count:
    """What was done since `begun`, in seconds of the monotonic clock."""

    begun: float
    updates: int = 0
    samples: int = 0
    tokens: int = 0

    def add(self, samples: int, tokens: int) -> None:
        self.updates += 1
        self.samples += samples
        self.tokens += tokens

    def rates(self, moment: float) -> dict[str, float | None]:
        return {
            "samples_per_s": _rate(self.samples, moment - self.begun),
            "tokens_per_s": _rate(self.tokens, moment - self.begun),
        }


class ProgressLog:
    """Entries and a summary under `folder/progress_logs`, counted from this object's making.

    Only the monotonic clock measures; the wall clock names files and dates entries, so it may be
    set while training. One process writes to a folder (`durable.lock.only_process`), from one
    thread. `close` it however the work ends.

    Args:
        folder: the run's own folder.
        interval_s: seconds between entries; an entry is written at the first update after them.
        say: gets each warning, a line.
        clock: seconds that never go back.
        now: the wall clock, with its zone.
        probe: reads the machine, at most every `PROBE_EVERY_S`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        interval_s: float = INTERVAL_S,
        thresholds: Thresholds = Thresholds(),
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
        probe: Callable[[], MachineState] = machine_state,
    ) -> None:
        self._folder, self._interval_s, self._thresholds = folder / FOLDER, interval_s, thresholds
        self._say, self._clock, self._now, self._probe = say, clock, now, probe
        self._probed = begun = clock()
        # The first CPU percentage covers no time, or the time before this log; the next one is measured from here.
        self._machine = replace(probe(), cpu_percent=None)
        self._interval, self._whole = _Count(begun), _Count(begun)
        self._position: _Position | None = None
        self._timed_from: tuple[float, int] | None = None
        self._last_step = 0
        self._best_loss: float | None = None
        self._last_loss: float | None = None
        self._strained: set[str] = set()
        self._warnings: deque[dict[str, str]] = deque(maxlen=WARNINGS_KEPT)
        self._warned = self._entries = 0
        self._first_timestamp: str | None = None
        self._failure_told = False

    def update(
        self,
        *,
        stage: str,
        step: int | None = None,
        steps: int | None = None,
        epoch: float | None = None,
        loss: float | None = None,
        samples: int = 0,
        tokens: int = 0,
    ) -> None:
        """The step is counted; an entry is written if the interval is over.

        Args:
            step: steps finished, of `steps`.
            samples, tokens: done since the previous update.
        """
        moment = self._clock()
        self._move(
            _Position(stage, epoch, step, steps, None if loss is None else float(loss)), moment
        )
        self._interval.add(samples, tokens)
        self._whole.add(samples, tokens)
        self._look(moment)
        if moment - self._interval.begun >= self._interval_s:
            self._write(moment)

    def close(self) -> None:
        """What was counted since the last entry is written too; closing twice changes nothing."""
        if self._interval.updates:
            moment = self._clock()
            self._look(moment)
            self._write(moment)

    def _move(self, to: _Position, moment: float) -> None:
        """Losses and pace are a stage's own; steps that start over are timed anew."""
        before, self._position = self._position, to
        if before is None or to.stage != before.stage:
            self._best_loss = self._last_loss = self._timed_from = None
        if to.step is not None:
            if self._timed_from is None or to.step < self._last_step:
                self._timed_from = (moment, to.step)
            self._last_step = to.step
        if to.loss is not None:
            self._last_loss = to.loss
            if math.isfinite(to.loss) and (self._best_loss is None or to.loss < self._best_loss):
                self._best_loss = to.loss

    def _eta_s(self, at: _Position, moment: float) -> float | None:
        """Steps left at the stage's mean pace; None until a second step, for nothing says when the
        first began."""
        if at.step is None or at.steps is None or self._timed_from is None:
            return None
        begun, first = self._timed_from
        left, done = max(0, at.steps - at.step), at.step - first
        if not left:
            return 0.0
        return (moment - begun) / done * left if done else None

    def _look(self, moment: float) -> None:
        """The machine's reading is fresh, and what it strains at has been said."""
        if moment - self._probed < PROBE_EVERY_S:
            return
        self._probed, self._machine = moment, self._probe()
        limits = self._thresholds
        for gpu in self._machine.gpus:
            hot = f"GPU {gpu.index} temperature"
            self._watch(
                hot, gpu.temperature_c, limits.gpu_temperature_c, 5.0, "°C", "improve its cooling"
            )
        remedy = "close other programs or lower train.batch_tokens"
        self._watch(
            "memory in use", self._machine.memory_percent, limits.memory_percent, 3.0, "%", remedy
        )
        remedy = "close other programs if steps have become slower"
        self._watch("CPU in use", self._machine.cpu_percent, limits.cpu_percent, 10.0, "%", remedy)

    def _watch(
        self, name: str, value: float | None, limit: float, margin: float, unit: str, remedy: str
    ) -> None:
        """Warn where the value rises above the limit; it counts as fallen only at `margin`
        below."""
        if value is None:
            return
        if value <= limit - margin:
            self._strained.discard(name)
        elif value > limit and name not in self._strained:
            self._strained.add(name)
            message = f"{name}: {value:g} {unit} is above {limit:g} {unit}; {remedy}"
            self._warned += 1
            self._warnings.append(
                {"timestamp": self._now().isoformat(timespec="seconds"), "message": message}
            )
            self._say(message)

    def _write(self, moment: float) -> None:
        """The entry and the summary are on disk, or the failure has been said; the next interval
        has begun."""
        now = self._now()
        entry = self._entry(moment, now)
        self._interval = _Count(moment)
        try:
            make_folder(self._folder)
            write_json(self._free_path(now), entry)
            self._entries += 1
            self._first_timestamp = self._first_timestamp or entry["timestamp"]
            write_json(self._folder / SUMMARY, self._summary(entry, moment))
        except (OSError, DiskFullError) as error:
            if not self._failure_told:
                self._failure_told = True
                reason = (
                    "the disk is full"
                    if isinstance(error, DiskFullError)
                    else error.strerror or str(error)
                )
                self._say(
                    f"{self._folder}: the progress log cannot be written ({reason}); training goes on"
                )

    def _free_path(self, now: datetime) -> Path:
        """A name not taken yet: a clock set back comes by the same second twice."""
        name, suffix = f"progress_{now:%Y%m%d_%H%M%S}", 0
        path = self._folder / f"{name}.json"
        while path.exists():
            suffix += 1
            path = self._folder / f"{name}_{suffix}.json"
        return path

    def _entry(self, moment: float, now: datetime) -> dict[str, Any]:
        position = self._position
        assert position is not None, "an entry needs an update"
        return _finite(
            {
                "timestamp": now.isoformat(timespec="seconds"),
                **asdict(position),
                **self._interval.rates(moment),
                "samples": self._interval.samples,
                "tokens": self._interval.tokens,
                "interval_s": moment - self._interval.begun,
                "elapsed_s": moment - self._whole.begun,
                "eta_s": self._eta_s(position, moment),
                **asdict(self._machine),
            }
        )

    def _summary(self, latest: dict[str, Any], moment: float) -> dict[str, Any]:
        """Rates are means since the log's making; losses are the latest stage's, for those of two
        stages do not compare."""
        return _finite(
            {
                "entries": self._entries,
                "first_timestamp": self._first_timestamp,
                "last_timestamp": latest["timestamp"],
                "best_loss": self._best_loss,
                "last_loss": self._last_loss,
                **self._whole.rates(moment),
                "samples": self._whole.samples,
                "tokens": self._whole.tokens,
                "elapsed_s": moment - self._whole.begun,
                "warning_count": self._warned,
                "warnings": list(self._warnings),
                "latest": latest,
            }
        )


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None


def _finite(value: Any) -> Any:
    """The value with null for every NaN and infinity, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
