"""Whatever a power cut leaves on the disk, what was acknowledged is there, whole."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.crash.crash_states import Disk, Operation, materialise, parse, record, states
from tests.crash.report import Report
from tests.crash.verdict import acknowledged, judge
from tests.crash.writer import SCENARIOS

WRITER = Path(__file__).with_name("writer.py")
pytestmark = pytest.mark.usefixtures("strace")


def recorded(scenario: str, root: Path) -> list[Operation]:
    """What the writer does on the disk, having checked that it did it all and that nothing escaped
    the record."""
    root.mkdir(parents=True)
    operations = parse(
        record(str(root), [sys.executable, "-B", str(WRITER), scenario, str(root)]), str(root)
    )
    assert acknowledged(root) == SCENARIOS[scenario][1].split()
    disk = Disk(str(root))
    for operation in operations:
        disk.apply(operation)
    real = {
        str(path): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    assert {
        name: bytes(inode.live) for name, inode in disk.files.items() if not name.endswith("-shm")
    } == {name: content for name, content in real.items() if "/latest/" not in name}
    return operations


def unsound(
    scenario: str,
    operations: list[Operation],
    root: Path,
    *,
    begin: int = 0,
    least: int | None = None,
) -> tuple[int, list[str]]:
    """How many distinct states there are from operation `begin` on, and the place and the fault of
    each unsound one."""
    replayed, count, wrong = root.with_name(f"{root.name}.replayed"), 0, []
    for where, files, folders in states(operations, str(root)):
        if int(where.split()[1]) < begin:
            continue
        materialise(files, folders, str(root), replayed)
        count += 1
        if fault := judge(scenario, replayed, least=least):
            wrong.append(f"{where}: {fault}")
    return count, wrong


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_state_after_a_power_cut_is_sound(
    scenario: str, tmp_path: Path, report: Report
) -> None:
    begun, root = time.monotonic(), tmp_path.resolve() / "disk"
    operations = recorded(scenario, root)
    count, wrong = unsound(scenario, operations, root)
    took, remarks = time.monotonic() - begun, f"{len(operations)} operations"
    report.add(
        "power cut", scenario, count=count, sound=count - len(wrong), seconds=took, remarks=remarks
    )
    assert count > len(operations) / 2
    assert not wrong, "\n".join(wrong)


def fsyncs(operations: list[Operation], root: Path) -> list[int]:
    work = str(root / "work")
    return [
        index
        for index, found in enumerate(operations)
        if found[0] == "fsync" and found[1].startswith(work)
    ]


def without(operations: list[Operation], indices: list[int]) -> list[Operation]:
    return [operation for index, operation in enumerate(operations) if index not in indices]


def test_a_forgotten_fsync_is_found(tmp_path: Path) -> None:
    """These tests can fail: without the fsyncs of folders, or those of files, states are not
    sound."""
    root = tmp_path.resolve() / "disk"
    operations = recorded("save", root)
    folders = {operation[1] for operation in operations if operation[0] == "mkdir"}
    of_folders = [index for index in fsyncs(operations, root) if operations[index][1] in folders]
    of_files = [index for index in fsyncs(operations, root) if index not in of_folders]
    assert unsound("save", without(operations, of_folders), root)[1]
    assert unsound("save", without(operations, of_files), root)[1]


def test_a_forgotten_fsync_of_the_audit_log_is_found(tmp_path: Path) -> None:
    """The same for the log's files, and for its salts, which are synced ahead of the records that
    need them."""
    root = tmp_path.resolve() / "disk"
    operations = recorded("audit", root)
    for part in ("log/segment-", "keys/salts/"):
        forgotten = [
            index for index in fsyncs(operations, root) if f"/{part}" in operations[index][1]
        ]
        assert unsound("audit", without(operations, forgotten), root)[1]


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_lies_about_fsync_costs_one_save_at_most(
    every: int, tmp_path: Path, report: Report
) -> None:
    """One fsync of the third save, or all, do nothing; then the power fails: the second snapshot or
    the third is there."""
    begun, root = time.monotonic(), tmp_path.resolve() / "disk"
    operations = recorded("replacing", root)
    notes = [
        index
        for index, found in enumerate(operations)
        if found[:2] == ("open", str(root / "acknowledged"))
    ]
    lies = [index for index in fsyncs(operations, root) if notes[1] < index < notes[2]]
    total, wrong = 0, []
    for lie in [*([index] for index in lies[::every]), lies]:
        count, found = unsound("replacing", without(operations, lie), root, begin=lies[0], least=2)
        total += count
        wrong += found
    case = f"replacing, {len(lies[::every])} of {len(lies)} fsyncs, and all"
    report.add(
        "lying disk", case, count=total, sound=total - len(wrong), seconds=time.monotonic() - begun
    )
    assert not wrong, "\n".join(wrong)
