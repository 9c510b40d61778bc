"""A run's progress on disk: an entry every few minutes, a summary, and warnings."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aegis.config import DurableSettings
from aegis.errors import DiskFullError
from aegis.runs.events import Event, Metrics, Progress, StageBegun, TrainingBegun, finite
from aegis.runs.machine import MachineState, machine_state
from aegis.storage.files import make_folder, write_json

FOLDER = "progress_logs"
SUMMARY = "progress_summary.json"
PROBE_EVERY_S = 10.0
WARNINGS_KEPT = 100
_OTHERS_PERCENT = 10.0  # what other programs may take of the CPUs without a warning
_MARGINS = {"GPU": 5.0, "memory": 3.0, "CPU": 10.0}  # how far below its limit a reading must fall


@dataclass(frozen=True)
class _Position:
    stage: str
    epoch: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None


@dataclass
class _Count:
    """What was done since `begun`, in seconds of the monotonic clock."""

    begun: float
    events: int = 0
    samples: int = 0
    tokens: int = 0

    def add(self, samples: int, tokens: int) -> None:
        self.events += 1
        self.samples += samples
        self.tokens += tokens

    def to_json(self, now: float) -> dict[str, Any]:
        seconds = now - self.begun
        rates = {
            f"{name}_per_s": count / seconds if count and seconds > 0 else None
            for name, count in (("samples", self.samples), ("tokens", self.tokens))
        }
        return {**rates, "samples": self.samples, "tokens": self.tokens}


class ProgressLog:
    """Subscriber that writes entries and a summary under `folder/progress_logs`.

    Only the monotonic clock measures; the wall clock names files and dates entries, so it may be
    set while training. One process writes to a folder, from one thread. `close` it however the work
    ends.

    Args:
        folder: the run's own folder.
        settings: `interval_s` between entries, which are written at the first event after it, and
            the readings above which to warn.
        say: gets each warning, a line.
        clock: seconds that never go back.
        now: the wall clock, with its zone.
        probe: reads the machine, at most every `PROBE_EVERY_S`.
    """

    def __init__(
        self,
        folder: Path,
        settings: DurableSettings,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        probe: Callable[[], MachineState] = machine_state,
    ) -> None:
        self._folder, self._settings = folder / FOLDER, settings
        self._say, self._clock, self._now, self._probe = say, clock, now, probe
        self._probed = begun = clock()
        # The first CPU percentage covers the time before this log; the next begins here.
        self._machine = replace(probe(), cpu_percent=None)
        self._interval, self._whole = _Count(begun), _Count(begun)
        self._stage = "init"
        self._position: _Position | None = None
        self._timed_from: tuple[float, int] | None = None
        self._last_step = 0
        self._best_loss: float | None = None
        self._last_loss: float | None = None
        self._strained: set[str] = set()
        self._warnings: deque[dict[str, str]] = deque(maxlen=WARNINGS_KEPT)
        self._warning_count = self._entries = 0
        self._first_timestamp: str | None = None
        self._failure_reported = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageBegun):
            self._stage = event.stage
        elif isinstance(event, TrainingBegun):
            self._position = _Position(self._stage)
            self._best_loss = self._last_loss = self._timed_from = None
        elif isinstance(event, Metrics) and event.samples is not None:
            loss = event.values.get("loss")
            position = _Position(self._stage, event.epoch, event.step, event.steps, loss)
            self._count(position, event.samples, event.tokens or 0)
        elif isinstance(event, Progress):
            self._count(_Position(self._stage), 0, 0)

    def close(self) -> None:
        """Write what was counted since the last entry; closing twice changes nothing."""
        if self._interval.events:
            moment = self._clock()
            self._check_machine(moment)
            self._write(moment)

    def _count(self, position: _Position, samples: int, tokens: int) -> None:
        moment = self._clock()
        self._move(position, moment)
        self._interval.add(samples, tokens)
        self._whole.add(samples, tokens)
        self._check_machine(moment)
        if moment - self._interval.begun >= self._settings.interval_s:
            self._write(moment)

    def _move(self, to: _Position, moment: float) -> None:
        """Keep losses and pace to a stage; time steps that start over anew."""
        before = self._position
        if before is None or to.stage != before.stage:
            self._best_loss = self._last_loss = self._timed_from = None
        elif to.step is None:
            return
        self._position = to
        if to.step is not None:
            if self._timed_from is None or to.step < self._last_step:
                self._timed_from = (moment, to.step)
            self._last_step = to.step
        if to.loss is not None:
            self._last_loss = to.loss
            if math.isfinite(to.loss) and (self._best_loss is None or to.loss < self._best_loss):
                self._best_loss = to.loss

    def _remaining_s(self, at: _Position, moment: float) -> float | None:
        """Estimate the stage's remaining seconds at its mean pace; None until a second step."""
        if at.step is None or at.steps is None or self._timed_from is None:
            return None
        begun, first = self._timed_from
        remaining, done = max(0, at.steps - at.step), at.step - first
        if not remaining:
            return 0.0
        return (moment - begun) / done * remaining if done else None

    def _check_machine(self, moment: float) -> None:
        """Read the machine if the last reading is old; warn of each limit that is crossed."""
        if moment - self._probed < PROBE_EVERY_S:
            return
        self._probed, self._machine = moment, self._probe()
        machine, limits = self._machine, self._settings
        remedy = "improve its cooling"
        for gpu in machine.gpus:
            name, limit = f"GPU {gpu.index} temperature", limits.gpu_temperature_c
            self._warn_above(name, gpu.temperature_c, limit, "°C", remedy)
        remedy = "close other programs or lower train.batch_tokens"
        self._warn_above(
            "memory in use", machine.memory_percent, limits.memory_percent, "%", remedy
        )
        total, own = machine.cpu_percent, machine.own_cpu_percent or 0.0
        if total is not None and total - own <= _OTHERS_PERCENT:
            total = min(total, limits.cpu_percent)  # the training's own use is what it is for
        remedy = f"{own:.0f} % are this run's; close other programs if steps have become slower"
        self._warn_above("CPU in use", total, limits.cpu_percent, "%", remedy)

    def _warn_above(
        self, name: str, value: float | None, limit: float, unit: str, remedy: str
    ) -> None:
        """Warn once that a reading is above its limit, and again only after it fell well below."""
        if value is None:
            return
        if value <= limit - _MARGINS[name.split()[0]]:
            self._strained.discard(name)
        elif value > limit and name not in self._strained:
            self._strained.add(name)
            message = f"{name}: {value:g} {unit} is above {limit:g} {unit}; {remedy}"
            timestamp = self._now().isoformat(timespec="seconds")
            self._warning_count += 1
            self._warnings.append({"timestamp": timestamp, "message": message})
            self._say(message)

    def _write(self, moment: float) -> None:
        """Write entry and summary, or report once that it fails; begin the next interval."""
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
            if not self._failure_reported:
                self._failure_reported = True
                is_os_error = isinstance(error, OSError)
                reason = (error.strerror or str(error)) if is_os_error else "the disk is full"
                self._say(
                    f"{self._folder}: the progress log cannot be written ({reason}); "
                    "training goes on"
                )

    def _free_path(self, now: datetime) -> Path:
        """Return a name not taken yet: a clock set back comes by the same second twice."""
        name, suffix = f"progress_{now:%Y%m%d_%H%M%S}", 0
        path = self._folder / f"{name}.json"
        while path.exists():
            suffix += 1
            path = self._folder / f"{name}_{suffix}.json"
        return path

    def _entry(self, moment: float, now: datetime) -> dict[str, Any]:
        position = self._position
        assert position is not None, "an entry needs an event"
        return finite(
            {
                "timestamp": now.isoformat(timespec="seconds"),
                **asdict(position),
                **self._interval.to_json(moment),
                "interval_s": moment - self._interval.begun,
                "elapsed_s": moment - self._whole.begun,
                "eta_s": self._remaining_s(position, moment),
                **asdict(self._machine),
            }
        )

    def _summary(self, latest: dict[str, Any], moment: float) -> dict[str, Any]:
        """Sum up since the log's making; losses are of the latest stage alone."""
        return finite(
            {
                "entries": self._entries,
                "first_timestamp": self._first_timestamp,
                "last_timestamp": latest["timestamp"],
                "best_loss": self._best_loss,
                "last_loss": self._last_loss,
                **self._whole.to_json(moment),
                "elapsed_s": moment - self._whole.begun,
                "warning_count": self._warning_count,
                "warnings": list(self._warnings),
                "latest": latest,
            }
        )
