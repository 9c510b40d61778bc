"""What was acknowledged is there, whatever fails."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aegis.audit import AuditKeys, AuditLog
from aegis.audit import log as log_module
from aegis.audit.log_tip import read_log_tip
from aegis.audit.reader import read_newest, segments
from aegis.audit.verify import check, verify
from aegis.errors import AegisError, AuditError, AuditUnavailableError
from tests.audit.logs import entry, interrupted, problems


def test_order_is_by_number_where_the_clock_goes_back(tmp_path: Path) -> None:
    keys, times = AuditKeys.create(tmp_path / "keys"), itertools.count(2000, -1)
    with AuditLog.open(
        tmp_path / "log", keys, clock=lambda: f"{next(times)}-01-01T00:00:00.000Z"
    ) as log:
        assert [log.append(entry(number)) for number in (1, 2, 3)] == [1, 2, 3]
    assert verify(tmp_path / "log", keys=keys).sound


def test_a_new_log_and_an_unknown_key_are_told_apart(tmp_path: Path) -> None:
    keys = AuditKeys.create(tmp_path / "keys")
    with AuditLog.open(tmp_path / "log", keys) as log:
        assert log.count == 0
    assert verify(tmp_path / "log", keys=keys).records == 0
    other = AuditKeys.create(tmp_path / "other")
    with pytest.raises(AuditError, match="which is none of the keys given"):
        AuditLog.open(tmp_path / "log", other)
    assert log_module.SEGMENT_BYTES >= 1 << 20


def test_a_cut_off_write_is_set_aside_and_an_acknowledged_one_never(tmp_path: Path) -> None:
    log, keys, whole, size, head = interrupted(tmp_path)
    (path,) = segments(log)
    for cut in range(size, len(whole), 3):
        path.write_bytes(whole[:cut])
        assert all(problems(log, keys)[:2]), cut  # the head knows of record 3
    (keys.folder / "head").write_bytes(head)
    for left in (whole[size:cut] for cut in range(size, len(whole), 7)):
        for tail in (left, left + bytes(100), bytes(len(left))):
            path.write_bytes(whole[:size] + tail)
            read = read_newest(log, keys, read_log_tip(keys))
            assert (read.chain.after, read.tail) == (2, tail.rstrip(b"\0"))
    path.write_bytes(whole[:-300])
    with AuditLog.open(log, keys) as again:
        assert again.count == 2
        assert again.append(entry(3)) == 3
    report = verify(log, keys=keys)
    assert report.sound
    assert [note["kind"] for note in report.notes] == ["unfinished"]
    (aside,) = (log / "unfinished").iterdir()
    assert aside.read_bytes() == whole[size:-300]
    assert report.notes[0]["sha256"] == hashlib.sha256(aside.read_bytes()).hexdigest()
    assert check(log, keys, 3, "final", "final 3")


class Failing:
    """Stands in front of the calls that write; the `at`th of them fails, once, a write after half
    of its bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, code: int) -> None:
        self.count, self.at, self.code = 0, at, code
        for name in ("write", "fsync", "fdatasync", "ftruncate", "pwrite", "open"):
            if hasattr(os, name):
                monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            self.count += 1
            if self.count != self.at:
                return call(*arguments)
            if name in ("write", "pwrite"):
                call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], *arguments[2:])
            raise OSError(self.code, os.strerror(self.code))

        return wrapped


@pytest.mark.skipif(not hasattr(os, "pwrite"), reason="counts POSIX calls")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("dies", [False, True])
def test_whatever_call_fails_what_was_acknowledged_is_there(
    code: int, dies: bool, copy: Path, tmp_path: Path
) -> None:
    """Each call of three appends, a new file and a new block of salts among them, fails once; then
    it works again."""
    refused, at, messages = 0, 0, set[bool]()
    for at in itertools.count(1):
        shutil.rmtree(tmp_path / "try", ignore_errors=True)
        shutil.copytree(copy, tmp_path / "try")
        keys = AuditKeys.load(tmp_path / "try" / "keys")
        folder, acknowledged = tmp_path / "try" / "log", dict.fromkeys(range(1, 10), "")
        log = AuditLog.open(folder, keys, segment_bytes=4000)
        log._salts._block_number = -1  # read anew
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, at, code)
            for number in range(10, 18):
                try:
                    acknowledged[log.append(entry(number))] = f"final {number}"
                except AuditUnavailableError as error:
                    refused += 1
                    messages.add("the disk is full" in str(error))
                    if dies:
                        break
        if dies:
            log._release()
        else:
            log.close()
            assert len(acknowledged) >= 16
        with AuditLog.open(folder, keys) as again:
            assert again.count >= max(acknowledged)
        assert verify(folder, keys=keys).sound
        assert all(
            check(folder, keys, number, "final", final)
            for number, final in acknowledged.items()
            if final
        )
        if failing.count < at:
            break
    assert messages == {code == errno.ENOSPC}
    assert refused == at - 1
    assert refused > 20


def test_a_full_disk_at_the_opening_is_told(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Failing(monkeypatch, 2, errno.ENOSPC)
    with pytest.raises(
        AuditUnavailableError, match="the disk is full, so nothing can be recorded or answered"
    ):
        AuditLog.open(copy / "log", AuditKeys.load(copy / "keys"))
    AuditLog.open(copy / "log", AuditKeys.load(copy / "keys")).close()


def test_threads_share_fsyncs_and_every_record_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, numbers = AuditKeys.create(tmp_path / "keys"), {}
    log = AuditLog.open(tmp_path / "log", keys)

    def slow(descriptor: int) -> None:
        time.sleep(0.002)
        os.fsync(descriptor)

    monkeypatch.setattr(log_module, "sync_data", slow)

    def work(thread: int) -> None:
        for step in range(10):
            name = 100 * thread + step
            numbers[name] = log.append(entry(name))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    report = verify(tmp_path / "log", keys=keys)
    assert report.sound
    assert sorted(numbers.values()) == list(range(1, 81))
    assert report.writes < 60
    assert all(
        check(tmp_path / "log", keys, number, "final", f"final {name}")
        for name, number in numbers.items()
    )


def test_one_process_writes_and_a_closed_log_takes_nothing(tmp_path: Path) -> None:
    keys = AuditKeys.create(tmp_path / "keys")
    log = AuditLog.open(tmp_path / "log", keys)
    with pytest.raises(AegisError, match="another process is at work here"):
        AuditLog.open(tmp_path / "log", keys)
    closer = threading.Thread(target=log.close)
    closer.start()
    closer.join()
    log.close()
    with pytest.raises(AuditUnavailableError, match="the log is closed"):
        log.append(entry(1))
    AuditLog.open(tmp_path / "log", keys).close()


def remove(log: Path) -> Callable[[], object]:
    (path,) = segments(log)
    data = path.read_bytes()
    path.unlink()
    return lambda: path.write_bytes(data)  # the same bytes, another file


def move(log: Path) -> Callable[[], object]:
    log.rename(log.with_name("elsewhere"))
    return lambda: log.with_name("elsewhere").rename(log)


def move_head(log: Path) -> Callable[[], object]:
    head = log.with_name("keys") / "head"
    head.rename(head.with_name("away"))
    return lambda: head.with_name("away").rename(head)


def cut_file(log: Path) -> Callable[[], object]:
    (path,) = segments(log)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    return lambda: os.truncate(path, size)


@pytest.mark.parametrize("harm", [remove, move, move_head, cut_file])
@pytest.mark.parametrize("during", [False, True])
def test_nothing_is_acknowledged_that_is_not_where_readers_look(
    harm: Callable[[Path], Callable[[], object]],
    during: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys, folder, mend = AuditKeys.create(tmp_path / "keys"), tmp_path / "log", list[Any]()
    log = AuditLog.open(folder, keys)
    assert log.append(entry(1)) == 1
    if during and harm is not move_head:  # the head is one write behind at most
        sync = log_module.sync_data
        monkeypatch.setattr(log_module, "sync_data", lambda d: (sync(d), mend.append(harm(folder))))
    else:
        mend.append(harm(folder))
    for _ in range(1 if during and harm is cut_file else 2):  # what was not told may go
        with pytest.raises(AuditUnavailableError, match="so its answer must not leave"):
            log.append(entry(2))
        monkeypatch.undo()
    mend[0]()
    if harm is remove:
        with pytest.raises(AuditUnavailableError, match="was replaced while it was being written"):
            log.append(entry(2))
        log._release()
    else:
        assert log.append(entry(2)) == 2
        log.close()
    AuditLog.open(folder, keys).close()
    assert verify(folder, keys=keys).sound


WRITER = """
import sys, threading
from pathlib import Path
from aegis.audit import AuditEntry, AuditKeys, AuditLog, keystore
keystore.SALT_BLOCK = 8
folder = Path(sys.argv[1])
log = AuditLog.open(folder / "log", AuditKeys.load(folder / "keys"), segment_bytes=20000)
lock = threading.Lock()
def work(thread):
    for step in range(10**6):
        name = f"{sys.argv[2]}-{thread}-{step}"
        number = log.append(AuditEntry(name, None, "DENY", False, "m", "q", {}, name, "answered"))
        with lock:
            print(number, name, flush=True)
for thread in range(3):
    threading.Thread(target=work, args=(thread,)).start()
"""


def test_a_killed_process_has_lost_nothing_acknowledged(tmp_path: Path) -> None:
    keys, acknowledged, random_state = AuditKeys.create(tmp_path / "keys"), {}, random.Random(0)
    for run in range(6):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(run)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            first = process.stdout.readline()
            time.sleep(random_state.uniform(0, 0.1))
            process.kill()
            told = [first, *process.stdout]
        pairs = [line.split() for line in told if line.endswith("\n")]
        assert pairs, "the writer told nothing"
        acknowledged |= {int(number): name for number, name in pairs}
        with AuditLog.open(tmp_path / "log", keys) as log:
            assert log.count >= max(acknowledged)
    assert verify(tmp_path / "log", keys=keys).sound
    sample = random_state.sample(sorted(acknowledged), min(40, len(acknowledged)))
    assert all(
        check(tmp_path / "log", keys, number, "final", acknowledged[number]) for number in sample
    )
