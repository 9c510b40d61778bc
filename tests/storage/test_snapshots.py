from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aegis.errors import AegisError, StoppedError
from aegis.storage import snapshots as module
from aegis.storage.artifact import MANIFEST
from aegis.storage.files import DiskFullError
from aegis.storage.snapshots import Kind, SnapshotStore


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "state.txt").write_text(text)
        (folder / "more").mkdir()
        (folder / "more" / "deep.txt").write_text(text * 50)

    return write


def make(folder: Path, **changes: Any) -> SnapshotStore:
    return SnapshotStore(folder, **{"fingerprint": "f", "keep": 5, **changes})


def newest_step(folder: Path, **changes: Any) -> int | None:
    found = make(folder, **changes).newest()
    return found.step if found else None


def test_names_say_what_and_when(tmp_path: Path) -> None:
    store = make(tmp_path)
    kinds: tuple[Kind, ...] = ("rolling", "emergency", "epoch", "final")
    names = [store.save(kind, step=7, write=writer("x"), epoch=2).folder.name for kind in kinds]
    assert re.fullmatch(r"checkpoint_rolling_00000007_\d{8}_\d{6}", names[0])
    assert re.fullmatch(r"checkpoint_emergency_00000007_\d{8}_\d{6}", names[1])
    assert names[2:] == ["checkpoint_epoch_2", "checkpoint_final"]


def test_the_newest_stay(tmp_path: Path) -> None:
    store = make(tmp_path, keep=3)
    for step in range(1, 8):
        store.save("rolling", step=step, write=writer(str(step)))
    assert sorted(int(path.name.split("_")[2]) for path in tmp_path.iterdir()) == [5, 6, 7]
    assert newest_step(tmp_path) == 7


def test_a_clock_set_back_a_year_keeps_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path, keep=2)
    real = module.datetime

    class Earlier(real):  # type: ignore[valid-type, misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            moment = real.now(tz)
            return moment.replace(year=moment.year - 1, day=1)

    store.save("rolling", step=1, write=writer("1"))
    store.save("rolling", step=2, write=writer("2"))
    monkeypatch.setattr(module, "datetime", Earlier)
    store.save("rolling", step=3, write=writer("3"))
    store.save("emergency", step=4, write=writer("4"))
    assert newest_step(tmp_path) == 4
    assert sorted(int(path.name.split("_")[2]) for path in tmp_path.iterdir()) == [3, 4]


def damages(folder: Path) -> list[tuple[Path, str]]:
    return [
        (path, how)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for how in ("flip", "cut", "gone", "empty")
    ]


def test_any_damage_to_any_file_falls_back_and_is_told(tmp_path: Path) -> None:
    original = tmp_path / "original"
    store = make(original)
    store.save("rolling", step=1, write=writer("1"))
    newest = store.save("rolling", step=2, write=writer("2")).folder
    cases = damages(newest)
    assert len(cases) == 3 * 4  # state, deeper file, manifest
    for path, how in cases:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy)
        target = copy / path.relative_to(original)
        content = target.read_bytes()
        middle = len(content) // 2
        if how == "flip":
            target.write_bytes(
                content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )
        elif how == "cut":
            target.write_bytes(content[:-1])
        elif how == "empty":
            target.write_bytes(b"")
        else:
            target.unlink()
        told: list[str] = []
        assert newest_step(copy, say=told.append) == 1, (path.name, how)
        assert newest.name in told[0]
        assert "damaged" in told[0]
        assert newest_step(copy) == 1


def test_after_a_fall_back_new_snapshots_are_the_newest(tmp_path: Path) -> None:
    store = make(tmp_path, keep=2)
    for step in (10, 20, 30):
        path = store.save("rolling", step=step, write=writer("x")).folder
    (path / MANIFEST).write_text("{")
    assert newest_step(tmp_path) == 20
    store = make(tmp_path, keep=2)
    store.save("rolling", step=25, write=writer("x"))
    assert newest_step(tmp_path) == 25


def test_snapshots_of_other_work_do_not_count(tmp_path: Path) -> None:
    make(tmp_path, fingerprint="old").save("rolling", step=99, write=writer("x"))
    assert newest_step(tmp_path) is None
    make(tmp_path).save("rolling", step=1, write=writer("x"))
    assert newest_step(tmp_path) == 1
    assert newest_step(tmp_path, fingerprint="old") is None


def test_a_full_disk_pauses_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    waits: list[float] = []
    store = make(tmp_path, say=told.append, wait=waits.append)
    store.save("rolling", step=1, write=writer("x"))

    def full(*_: Any) -> None:
        if len(waits) < 3:
            raise DiskFullError("no room")

    monkeypatch.setattr(module, "require_space", full)
    store.save("rolling", step=2, write=writer("x"))
    assert len(waits) == 3
    assert told[0].startswith("paused, no room")
    assert told[1:] == ["there is room again, going on"]
    assert newest_step(tmp_path) == 2


def test_a_stop_ends_the_pause_and_the_last_snapshot_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(_: float) -> None:
        raise StoppedError("stopped by SIGINT")

    store = make(tmp_path, wait=wait)
    store.save("rolling", step=1, write=writer("x"))

    def write(folder: Path) -> None:
        (folder / "state.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StoppedError):
        store.save("rolling", step=2, write=write)
    assert newest_step(tmp_path) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_fails_is_told_and_leaves_the_last_snapshot(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.save("rolling", step=1, write=writer("x"))

    def write(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(
        AegisError,
        match=r"could not be written \(Input/output error\); the ones before it are intact",
    ):
        store.save("rolling", step=2, write=write)
    assert newest_step(tmp_path) == 1
