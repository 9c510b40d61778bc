"""When a training saves itself, and how it takes up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from aegis.errors import StoppedError
from aegis.storage.snapshots import Kind, Snapshot, SnapshotStore
from aegis.train.state import Part, read_state, write_state


class SnapshotPolicy:
    """Saves a training at step ends: every `interval_s`, at epoch ends, and when stopped.

    Args:
        store: where the snapshots go.
        interval_s: the most that a power cut can cost.
        check: raises StoppedError if a stop was asked for.
        on_saved: told of every acknowledged snapshot.
    """

    def __init__(
        self,
        store: SnapshotStore,
        *,
        interval_s: float,
        check: Callable[[], None] = lambda: None,
        on_saved: Callable[[Snapshot], None] = lambda _: None,
        say: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.interval_s, self.check = store, interval_s, check
        self.on_saved, self.say = on_saved, say
        self.clock, self._saved = clock, clock()

    def restore(self, parts: Mapping[str, Part]) -> int | None:
        """Put the parts back as the newest sound snapshot has them; return its step, if any.

        Raises:
            AegisError: if that snapshot does not hold exactly these parts.
        """
        snapshot = self.store.newest()
        self._saved = self.clock()
        if snapshot is None:
            return None
        step = read_state(snapshot.folder, parts)
        self.say(f"resumed from {snapshot.folder.name}, step {step}")
        return step

    def begin(self, parts: Mapping[str, Part]) -> None:
        """Save the state before the first step: what came before it is not done twice."""
        self._save("rolling", 0, parts)

    def step_done(
        self, step: int, parts: Mapping[str, Part], *, epoch: int | None = None, last: bool = False
    ) -> None:
        """Save if it is time.

        Args:
            step: steps done.
            epoch: number of the epoch that ended with this step, from 1.
            last: the training ends with this step.

        Raises:
            StoppedError: if a stop was asked for; the state is saved.
        """
        try:
            self.check()
        except StoppedError as stop:
            self._save("emergency", step, parts)
            raise StoppedError(f"{stop}, from step {step}") from stop
        if last:
            self._save("final", step, parts)
        elif epoch is not None:
            self._save("epoch", step, parts, epoch=epoch)
        elif self.clock() - self._saved >= self.interval_s:
            self._save("rolling", step, parts)

    def _save(self, kind: Kind, step: int, parts: Mapping[str, Part], *, epoch: int = 0) -> None:
        def write(folder: Path) -> None:
            write_state(folder, parts, step=step)

        self.on_saved(self.store.save(kind, step=step, write=write, epoch=epoch))
        self._saved = self.clock()
