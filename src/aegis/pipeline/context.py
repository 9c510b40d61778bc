"""What a step gets to work with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from aegis.config import Config
from aegis.model.base import Base
from aegis.runs.events import Reporter, SnapshotSaved
from aegis.runs.record import Session
from aegis.runs.signals import Interrupt
from aegis.storage.journal import Journal
from aegis.storage.snapshots import Snapshot, SnapshotStore


@dataclass(frozen=True)
class StepContext:
    """The run that a step is part of, and which step it is.

    Args:
        contents: the hashes of the files of each artifact that the run has by now; they stand for
            its content in the fingerprints of later steps.
        fingerprint: of the step.
    """

    config: Config
    base: Base
    session: Session
    reporter: Reporter
    interrupt: Interrupt
    contents: dict[str, dict[str, str]] = field(default_factory=dict)
    stage: str = ""
    step: str = ""
    fingerprint: str = ""

    def artifact(self, name: str) -> Path:
        return self.session.folder / name

    @property
    def unfinished(self) -> Path:
        """Where the stage keeps what it has worked out so far."""
        return self.session.folder / "checkpoints" / self.stage

    def journal(self) -> Journal:
        """Return the finished shards of this step."""
        path = self.unfinished / f"{self.step}.{self.fingerprint[:16]}.jsonl"
        return Journal(path, check=self.interrupt.check, say=self.reporter.message)

    def snapshots(self) -> SnapshotStore:
        """Return the snapshots of this step."""
        return SnapshotStore(
            self.unfinished / self.step,
            fingerprint=self.fingerprint,
            keep=self.config.durable.keep_training,
            say=self.reporter.warning,
            wait=self._wait,
        )

    def record_snapshot(self, snapshot: Snapshot) -> None:
        """Record an acknowledged snapshot."""
        step, seconds, size = snapshot.step, snapshot.seconds, snapshot.size
        path = snapshot.folder.relative_to(self.session.folder).as_posix()
        self.session.add_snapshot(
            self.stage, snapshot.folder, step=step, seconds=seconds, size=size
        )
        facts = {"stage": self.stage, "path": path, "seconds": seconds}
        self.reporter.emit(SnapshotSaved(**facts, number=step, bytes=size))

    def _wait(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.interrupt.check()
            time.sleep(1)


def base_content(context: StepContext) -> str:
    """Return what stands for the base in the fingerprints of steps that read it."""
    return context.base.fingerprint
