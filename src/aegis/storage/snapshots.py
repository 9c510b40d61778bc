"""Snapshots of unfinished work: written whole, verified before anything older goes, found again
after any accident."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from aegis.errors import AegisError, ArtifactError, DiskFullError, is_disk_full
from aegis.storage.artifact import read_manifest, verify, writing
from aegis.storage.files import require_space, sync_folder

Kind = Literal["rolling", "emergency", "epoch", "final"]
_NAME = re.compile(r"checkpoint_(?:(?:rolling|emergency)_(\d+)_.+|epoch_\d+|final)$")
_KEEP_DAMAGED = 3
_RETRY_S = 30.0


@dataclass(frozen=True)
class Snapshot:
    """A verified snapshot: `folder` holds what `write` put there."""

    folder: Path
    step: int
    seconds: float = 0.0
    size: int = 0


class SnapshotStore:
    """The snapshots of one piece of work in one folder, ordered by step and never by clock.

    Args:
        folder: where they lie; created with the first.
        fingerprint: what the work is made of; snapshots of other work are not touched by `newest`,
            and make room first.
        keep: how many stay.
        say: gets one line for each thing worth telling.
        wait: called with seconds while the disk is full; it raises to end the waiting.
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
        self.folder, self.fingerprint, self.keep, self.say, self.wait = (
            folder,
            fingerprint,
            keep,
            say,
            wait,
        )
        self._size = 1 << 20

    def save(
        self, kind: Kind, *, step: int, write: Callable[[Path], None], epoch: int = 0
    ) -> Snapshot:
        """Write a snapshot, verify it, then let older ones go. It is safe against a power cut when
        this returns.

        A full disk pauses the work until there is room.

        Args:
            write: fills the folder it is given.
            epoch: names an `epoch` snapshot.

        Raises:
            AegisError: if it could not be written or does not read back; the snapshots before it
                are intact.
        """
        begun, told = time.monotonic(), False
        while True:
            try:
                target = self._write(kind, step, epoch, write)
                break
            except DiskFullError as error:
                if not told:
                    self.say(f"paused, {error}; going on by itself as soon as there is room")
                    told = True
                self.wait(_RETRY_S)
        if told:
            self.say("there is room again, going on")
        try:
            size = sum((target / name).stat().st_size for name in verify(target).files)
        except ArtifactError as error:
            raise AegisError(
                f"a snapshot does not read back as it was written ({error}); check the disk"
            ) from error
        self._size = size
        try:
            self._rotate(spare=target)
        except OSError as error:
            self.say(
                f"{self.folder}: an older snapshot could not be removed ({error.strerror or error}); the newest is sound"
            )
        return Snapshot(target, step, time.monotonic() - begun, size)

    def newest(self) -> Snapshot | None:
        """The newest sound snapshot of this work. Damaged ones are told, and set aside so that they
        never count again."""
        for _, folder in self._ordered():
            try:
                manifest = verify(folder)
                step = int(manifest.facts["step"])
            except (ArtifactError, KeyError, TypeError, ValueError) as error:
                aside = self._set_aside(folder)
                self.say(
                    f"snapshot {folder.name} is damaged ({error}); set aside as {aside.name}, trying the one before"
                )
                continue
            if manifest.fingerprint == self.fingerprint:
                return Snapshot(folder, step)
        return None

    def clear(self) -> None:
        """Nothing is left: the work is done, or starts anew."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _write(self, kind: Kind, step: int, epoch: int, write: Callable[[Path], None]) -> Path:
        target = self._name(kind, step, epoch)
        require_space(target, self._size)
        try:
            facts = {"step": step, "kind": kind, "saved": datetime.now().astimezone().isoformat()}
            with writing(
                target, kind="snapshot", fingerprint=self.fingerprint, facts=facts
            ) as staging:
                write(staging)
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(f"{target}: the disk is full; free some room") from error
            raise AegisError(
                f"{target}: the snapshot could not be written ({error.strerror or error}); the ones before it are intact. "
                "Check the disk and run the same command again"
            ) from error
        return target

    def _name(self, kind: Kind, step: int, epoch: int) -> Path:
        if kind == "final":
            return self.folder / "checkpoint_final"
        if kind == "epoch":
            return self.folder / f"checkpoint_epoch_{epoch}"
        name = f"checkpoint_{kind}_{step:08d}_{datetime.now():%Y%m%d_%H%M%S}"
        number, target = 1, self.folder / name
        while target.exists():
            number += 1
            target = self.folder / f"{name}_{number}"
        return target

    def _ordered(self) -> list[tuple[int, Path]]:
        """Every snapshot, newest first; one whose step cannot be read comes first, so that `newest`
        looks at it."""
        found = []
        for path in self.folder.glob("checkpoint_*"):
            if match := _NAME.match(path.name):
                found.append((_step(path, match.group(1)), path))
        return sorted(found, key=lambda item: (item[0], item[1].name), reverse=True)

    def _rotate(self, *, spare: Path) -> None:
        """Keep the newest of this work; those of other work go first. A cut here leaves at worst
        one too many."""
        ordered = self._ordered()
        mine = [path for _, path in ordered if path != spare and _made_by(path) == self.fingerprint]
        others = [path for _, path in ordered if path != spare and path not in mine]
        for path in mine[self.keep - 1 :] + others:
            gone = path.with_name(f".{path.name}.removing")
            path.rename(gone)
            sync_folder(self.folder)
        for left in (
            ".*.removing",
            ".*.writing",
        ):  # the latter by a process that was killed inside a save
            for gone in self.folder.glob(left):
                shutil.rmtree(gone, ignore_errors=True)

    def _set_aside(self, folder: Path) -> Path:
        number, aside = 1, folder.with_name(f"damaged_{folder.name}")
        while aside.exists():
            number += 1
            aside = folder.with_name(f"damaged_{folder.name}_{number}")
        folder.rename(aside)
        sync_folder(self.folder)
        damaged = sorted(self.folder.glob("damaged_*"), key=lambda path: path.stat().st_mtime_ns)
        for path in damaged[:-_KEEP_DAMAGED]:
            if path != aside:
                shutil.rmtree(path, ignore_errors=True)
        return aside


def _step(folder: Path, in_name: str | None) -> int:
    if in_name:
        return int(in_name)
    try:
        return int(read_manifest(folder).facts["step"])
    except (ArtifactError, KeyError, TypeError, ValueError):
        return 1 << 62


def _made_by(folder: Path) -> str | None:
    try:
        return read_manifest(folder).fingerprint
    except ArtifactError:
        return None
