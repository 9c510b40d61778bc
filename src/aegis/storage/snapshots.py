"""Snapshots of unfinished work: written whole, and verified before an older one is removed."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from aegis.errors import AegisError, ArtifactError, DiskFullError, is_disk_full
from aegis.storage.artifact import read_manifest, verify, was_made_by, writing
from aegis.storage.files import require_space, sync_folder

Kind = Literal["rolling", "emergency", "epoch", "final"]
_NAME = re.compile(r"checkpoint_(?:(?:rolling|emergency)_(\d+)_.+|epoch_\d+|final)$")
_KEEP_DAMAGED = 3
_RETRY_S = 30.0


@dataclass(frozen=True)
class Snapshot:
    """A verified snapshot, with the seconds that saving took and its size in bytes."""

    folder: Path
    step: int
    seconds: float = 0.0
    size: int = 0


class SnapshotStore:
    """The snapshots of one piece of work in one folder, ordered by step and never by clock.

    Args:
        folder: created with the first snapshot.
        fingerprint: what the work is made of; `newest` ignores snapshots of other work, and they
            are removed first.
        keep: how many stay.
        say: called with each message to the user.
        wait: called with seconds while the disk is full; raises to end the waiting.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fingerprint: str,
        keep: int,
        say: Callable[[str], None] = lambda _: None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.folder, self.fingerprint, self.keep = folder, fingerprint, keep
        self.say, self.wait = say, wait
        self._expected_bytes = 1 << 20

    def save(
        self, kind: Kind, *, step: int, write: Callable[[Path], None], epoch: int = 0
    ) -> Snapshot:
        """Write a snapshot, durably, verify it, then remove older ones.

        A full disk pauses the work until there is room.

        Args:
            write: fills the folder it is given.
            epoch: names an `epoch` snapshot.

        Raises:
            AegisError: if it could not be written or does not read back; the snapshots before it
                are intact.
        """
        started, paused = time.monotonic(), False
        while True:
            try:
                target = self._write(kind, step, epoch, write)
                break
            except DiskFullError as error:
                if not paused:
                    self.say(f"paused, {error}; going on by itself as soon as there is room")
                    paused = True
                self.wait(_RETRY_S)
        if paused:
            self.say("there is room again, going on")
        try:
            size = sum((target / name).stat().st_size for name in verify(target).files)
        except ArtifactError as error:
            problem = f"a snapshot does not read back as it was written ({error})"
            raise AegisError(f"{problem}; check the disk") from error
        self._expected_bytes = size
        try:
            self._remove_older(target)
        except OSError as error:
            self.say(
                f"{self.folder}: an older snapshot could not be removed "
                f"({error.strerror or error}); the newest is sound"
            )
        return Snapshot(target, step, time.monotonic() - started, size)

    def newest(self) -> Snapshot | None:
        """Return the newest sound snapshot of this work; damaged ones are renamed for good."""
        for folder in self._ordered():
            try:
                manifest = verify(folder)
                step = int(manifest.facts["step"])
            except (ArtifactError, KeyError, TypeError, ValueError) as error:
                aside = self._set_aside(folder)
                self.say(
                    f"snapshot {folder.name} is damaged ({error}); "
                    f"set aside as {aside.name}, trying the one before"
                )
                continue
            if manifest.fingerprint == self.fingerprint:
                return Snapshot(folder, step)
        return None

    def clear(self) -> None:
        """Remove all snapshots: the work is done, or starts anew."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _write(self, kind: Kind, step: int, epoch: int, write: Callable[[Path], None]) -> Path:
        target = self._target(kind, step, epoch)
        require_space(target, self._expected_bytes)
        try:
            facts = {"step": step, "kind": kind, "saved": datetime.now(UTC).isoformat()}
            mine = self.fingerprint
            with writing(target, kind="snapshot", fingerprint=mine, facts=facts) as staging:
                write(staging)
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(f"{target}: the disk is full; free some room") from error
            raise AegisError(
                f"{target}: the snapshot could not be written ({error.strerror or error}); "
                "the ones before it are intact. Check the disk and run the same command again"
            ) from error
        return target

    def _target(self, kind: Kind, step: int, epoch: int) -> Path:
        if kind == "final":
            return self.folder / "checkpoint_final"
        if kind == "epoch":
            return self.folder / f"checkpoint_epoch_{epoch}"
        name = f"checkpoint_{kind}_{step:08d}_{datetime.now(UTC):%Y%m%d_%H%M%S}"
        return _unused(self.folder / name)

    def _ordered(self) -> list[Path]:
        """Return every snapshot, newest first.

        One whose step cannot be read comes first, so that `newest` reads it.
        """
        snapshots = [
            (_step(path, match.group(1)), path.name, path)
            for path in self.folder.glob("checkpoint_*")
            if (match := _NAME.match(path.name))
        ]
        return [path for _, _, path in sorted(snapshots, reverse=True)]

    def _remove_older(self, newest: Path) -> None:
        """Keep the newest of this work and nothing of other work.

        A cut here leaves at worst one snapshot too many.
        """
        others = [path for path in self._ordered() if path != newest]
        mine = [path for path in others if was_made_by(path, self.fingerprint)]
        for path in mine[self.keep - 1 :] + [path for path in others if path not in mine]:
            path.rename(path.with_name(f".{path.name}.removing"))
            sync_folder(self.folder)
        # A process that was killed inside a save left a folder that ends in .writing.
        for pattern in (".*.removing", ".*.writing"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _set_aside(self, folder: Path) -> Path:
        aside = _unused(folder.with_name(f"damaged_{folder.name}"))
        folder.rename(aside)
        sync_folder(self.folder)
        damaged = sorted(self.folder.glob("damaged_*"), key=lambda path: path.stat().st_mtime_ns)
        for path in damaged[:-_KEEP_DAMAGED]:
            if path != aside:
                shutil.rmtree(path, ignore_errors=True)
        return aside


def _unused(path: Path) -> Path:
    """Return the path, or the first of path_2, path_3, … that does not exist."""
    number, unused = 1, path
    while unused.exists():
        number += 1
        unused = path.with_name(f"{path.name}_{number}")
    return unused


def _step(folder: Path, in_name: str | None) -> int:
    if in_name:
        return int(in_name)
    try:
        return int(read_manifest(folder).facts["step"])
    except (ArtifactError, KeyError, TypeError, ValueError):
        return 1 << 62
