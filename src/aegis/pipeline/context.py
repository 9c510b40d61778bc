"""What every stage works with: the run's settings, base, session and signs, and the one way to
write an artifact."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis.config import Config
from aegis.model.base import Base
from aegis.runs.events import Reporter
from aegis.runs.record import Session, session_folders
from aegis.runs.signals import Interrupt
from aegis.runs.trackers import open_trackers
from aegis.storage.artifact import adopt, is_current, read_manifest, writing
from aegis.storage.files import fingerprint
from aegis.storage.journal import Journal
from aegis.storage.snapshots import Snapshot, SnapshotStore
from aegis.train.services import TrainServices
from aegis.train.snapshot_policy import SnapshotPolicy
from aegis.train.state import random_state_kept

Say = Callable[[str], None]
_VERSIONS = {"raw": 2, "records": 2, "sft": 4, "reward": 3, "adapter": 9, "model": 5, "results": 3}


class Reached(Exception):  # noqa: N818 - no error
    """The run has come as far as it was asked to."""


@dataclass(frozen=True)
class Run:
    """What every stage reads: settings, base, where to write, whom to tell, and whether to stop.

    Args:
        until: the step of training after which to end; None for all stages.
    """

    config: Config
    base: Base
    session: Session
    say: Say
    interrupt: Interrupt
    reporter: Reporter
    until: str | None = None

    def artifact(self, name: str) -> Path:
        return self.session.folder / name

    def content(self, name: str) -> dict[str, str]:
        """The hashes of an artifact's files: what stands for its content in a later fingerprint."""
        return read_manifest(self.artifact(name)).files

    def unfinished(self, stage: str) -> Path:
        """Where a stage keeps what it has worked out so far."""
        return self.session.folder / "checkpoints" / stage

    def journal(self, stage: str, mark: str) -> Journal:
        """The finished shards of a stage; `mark` stands for what they are made of."""
        return Journal(
            self.unfinished(stage) / f"{mark[:16]}.jsonl", check=self.interrupt.check, say=self.say
        )

    def checkpoints(self, stage: str, mark: str, *, step: str) -> SnapshotPolicy:
        """The snapshots of one step of a training stage."""
        durable = self.config.durable

        def wait(seconds: float) -> None:
            for _ in range(round(seconds)):
                self.interrupt.check()
                time.sleep(1)

        def saved(snapshot: Snapshot) -> None:
            facts = {"step": snapshot.step, "seconds": snapshot.seconds, "size": snapshot.size}
            self.session.add_snapshot(stage, snapshot.folder, **facts)

        store = SnapshotStore(
            self.unfinished(stage) / step,
            fingerprint=mark,
            keep=durable.keep_training,
            say=self.say,
            wait=wait,
        )
        return SnapshotPolicy(
            store,
            interval_s=durable.interval_s,
            check=self.interrupt.check,
            on_saved=saved,
            say=self.say,
        )

    @contextlib.contextmanager
    def services(self, step: str, mark: str) -> Iterator[TrainServices]:
        """What one step of training reports to, and its snapshots."""
        with open_trackers(
            self.config.tracking,
            session=self.session.folder,
            training=step,
            fingerprint=mark,
            say=self.say,
            guard=random_state_kept,
        ) as trackers:
            reporter = Reporter(*self.reporter.subscribers, trackers)
            snapshots = self.checkpoints("so8t_ppo_training", mark, step=step)
            yield TrainServices(reporter, snapshots)


class Write:
    """Writes a stage's artifacts, but for those that are there already, in this session or
    (adopting) in another."""

    def __init__(self, run: Run, *, adopting: bool) -> None:
        self.run, self.adopting, self.computed = run, adopting, False

    def __call__(self, name: str, make: Callable[[Path, str], None], *parts: Any) -> None:
        """The artifact is there and current; `make` writes it into a staging folder where it is
        not.

        Args:
            make: gets the staging folder and the fingerprint of what the artifact is made of.
            parts: JSON values; together they decide whether an artifact is still the right one.
        """
        target, mark = self.run.artifact(name), fingerprint(name, _VERSIONS[name], *parts)
        if is_current(target, mark):
            return
        others = [folder / name for folder in session_folders(target.parent.parent)]
        if self.adopting and adopt(target, others, mark):
            self.run.say(
                f"{name}/ taken over from an earlier session: nothing that made it has changed"
            )
            return
        self.computed = True
        with writing(target, kind=name, fingerprint=mark) as staging:
            make(staging, mark)
