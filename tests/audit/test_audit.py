"""The audit log: what was acknowledged stays provable, whatever is done to its files, and nobody
reads a word in it."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.audit import AuditEntry, AuditKeys, AuditLog, keystore
from aegis.audit import log as log_module
from aegis.audit.chain import canonical, hash_line
from aegis.audit.log_tip import read_log_tip
from aegis.audit.reader import read_newest, segments
from aegis.audit.repair import accept, erase
from aegis.audit.verify import anchor, check, export, read_anchor, verify
from aegis.errors import AegisError, AuditError, AuditUnavailableError, BadInputError
from aegis.protocol.thinking import PrivateText

WORDS = {
    "task": "the private task",
    "safety": "the private risk",
    "policy": "ALLOW",
    "final": "the private plan",
}
DOCS = Path(__file__).parents[2] / "docs" / "audit.md"


def entry(number: int, *, user: str | None = "hanako", sections: bool = True) -> AuditEntry:
    return AuditEntry(
        request_id=f"request-{number}",
        user=user,
        decision="ALLOW",
        escalated=False,
        model="tiny",
        query=f"query {number}",
        sections={name: PrivateText(text) for name, text in WORDS.items()} if sections else {},
        final=f"final {number}",
        outcome="answered",
    )


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keystore, "SALT_BLOCK", 8)
        yield


def write(
    folder: Path,
    keys: AuditKeys,
    count: int,
    *,
    segment_bytes: int = 1 << 16,
    first: int = 1,
    sign_every_s: float = 1,
) -> None:
    with AuditLog.open(folder, keys, segment_bytes=segment_bytes, sign_every_s=sign_every_s) as log:
        for number in range(first, first + count):
            assert log.append(entry(number, sections=number % 2 == 0)) == number


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log of nine records in several files, with a change of keys, closed in good
    order; and its keys."""
    folder = tmp_path_factory.mktemp("made")
    keys = AuditKeys.create(folder / "keys")
    write(folder / "log", keys, 5, segment_bytes=4000, sign_every_s=0)
    write(folder / "log", keys.rotated(), 4, segment_bytes=4000, first=6)
    assert len(segments(folder / "log")) >= 3
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def lines_of(folder: Path) -> list[list[bytes]]:
    return [path.read_bytes().splitlines(keepends=True) for path in segments(folder)]


def all_lines(folder: Path) -> list[bytes]:
    return [line for lines in lines_of(folder) for line in lines]


def found(folder: Path, keys: AuditKeys) -> list[str]:
    """What each of the three readers says: the owner's verify, the server's opening, an auditor
    without any key."""
    try:
        read_newest(folder, keys, read_log_tip(keys))
        opening = ""
    except AuditError as error:
        opening = str(error)
    try:
        outsider = verify(folder).problem
    except AuditError as error:
        outsider = str(error)
    return [verify(folder, keys=keys).problem, opening, outsider]


# what it keeps


def test_records_are_numbered_committed_and_sound(copy: Path) -> None:
    keys, log = AuditKeys.load(copy / "keys"), copy / "log"
    report = verify(log, keys=keys)
    assert report.sound
    assert (report.records, report.newest, report.attested, report.head) == (9, 9, True, True)
    for number in range(1, 10):
        assert check(log, keys, number, "final", f"final {number}")
        assert check(log, keys, number, "user", "hanako")
        assert not check(log, keys, number, "final", f"final {number} ")
        assert not check(log, keys, number, "query", f"final {number}")
    assert check(log, keys, 2, "think-final", WORDS["final"])
    with pytest.raises(AuditError, match="not to 'think-final'; name one of these"):
        check(log, keys, 1, "think-final", WORDS["final"])
    with pytest.raises(AuditError, match="has no record 10"):
        check(log, keys, 10, "final", "")


def test_no_word_and_no_plain_hash_of_one_is_kept(copy: Path) -> None:
    kept = b"".join(path.read_bytes() for path in copy.rglob("*") if path.is_file())
    texts = [
        *WORDS.values(),
        "hanako",
        *(f"{kind} {number}" for kind in ("query", "final") for number in range(1, 10)),
    ]
    for text in texts:
        if text != "ALLOW":  # a decision, and in the log as one
            assert text.encode() not in kept
        assert hashlib.sha256(text.encode()).hexdigest().encode() not in kept
    assert not any(text in repr(entry(2)) for text in texts if text != "ALLOW")
    shown = [
        json.loads(line)["commitments"] for line in all_lines(copy / "log") if b'"entry"' in line
    ]
    every = [value for commitments in shown for value in commitments.values()]
    assert len(set(every)) == len(every)  # equal texts, unlike commitments


def test_what_opens_a_record_is_master_and_salt_together(copy: Path, tmp_path: Path) -> None:
    keys, log = AuditKeys.load(copy / "keys"), copy / "log"
    other = AuditKeys.create(tmp_path / "other")
    with pytest.raises(AuditError, match=r"made with key .* which is not among those given"):
        check(log, AuditKeys(keys.folder, other.masters), 3, "final", "final 3")
    shutil.rmtree(keys.folder / "salts")
    with pytest.raises(AuditError, match="the key of record 3 was erased"):
        check(log, keys, 3, "final", "final 3")
    assert verify(log, keys=keys).sound


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("request_id", "a b", "request_id must be 1 to 128"),
        ("decision", "MAYBE", "decision must be one of ALLOW"),
        ("outcome", "", "outcome must be 1 to 200 printable"),
        ("model", "a\nb", "model must be 1 to 200 printable"),
        ("sections", {"A b": PrivateText("x")}, "a section's name must be"),
    ],
)
def test_an_entry_that_cannot_be_stored_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        AuditEntry(**{**vars(entry(1)), field: value})


def test_order_is_by_number_where_the_clock_goes_back(tmp_path: Path) -> None:
    keys, times = AuditKeys.create(tmp_path / "keys"), itertools.count(2000, -1)
    with AuditLog.open(
        tmp_path / "log", keys, clock=lambda: f"{next(times)}-01-01T00:00:00.000Z"
    ) as log:
        assert [log.append(entry(number)) for number in (1, 2, 3)] == [1, 2, 3]
    assert verify(tmp_path / "log", keys=keys).sound


# tampering


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    keys = AuditKeys.create(tmp_path / "keys")
    with AuditLog.open(tmp_path / "log", keys) as log:
        for number in (1, 2):
            log.append(entry(number, user=None, sections=False))
    (path,) = segments(tmp_path / "log")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        if place % 6 == 0:
            assert all(found(tmp_path / "log", keys)), place
        else:
            assert not verify(tmp_path / "log", keys=keys).sound, place
    path.write_bytes(whole)
    assert not any(found(tmp_path / "log", keys))


def edits(lines: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Every line dropped, doubled, swapped, moved to the end and changed, with and without the
    hashes after it made anew."""
    for index, line in enumerate(lines):
        before, after = lines[:index], lines[index + 1 :]
        yield f"drop {index}", before + after
        yield f"double {index}", [*before, line, line, *after]
        if index + 1 < len(lines):
            yield f"swap {index}", [*before, after[0], line, *after[1:]]
            yield f"last {index}", [*before, *after, line]
        fields = json.loads(line)
        changed = canonical({**fields, "time": "2001-01-01T00:00:00.000Z"}) + b"\n"
        yield f"change {index}", [*before, changed, *after]
        yield f"change and chain {index}", [*before, changed, *chained(changed, after)]
        yield f"drop and chain {index}", [*before, *chained(before[-1], after)] if before else after


def chained(previous: bytes, lines: list[bytes]) -> list[bytes]:
    """The lines with hashes and numbers as whoever cannot sign would make them fit."""
    result, number = [], json.loads(previous).get("number", json.loads(previous).get("after"))
    for line in lines:
        fields = json.loads(line)
        number += fields["kind"] == "entry"
        place = {"number" if fields["kind"] == "entry" else "after": number}
        previous = canonical({**fields, **place, "prev": hash_line(previous.rstrip(b"\n"))}) + b"\n"
        result.append(previous)
    return result


def test_every_changed_dropped_moved_or_inserted_line_is_found(copy: Path) -> None:
    keys, log = AuditKeys.load(copy / "keys"), copy / "log"
    paths, whole, count = segments(log), lines_of(log), 0
    sizes = list(itertools.accumulate(len(lines) for lines in whole))
    for what, edited in edits(all_lines(log)):
        for path, start, end in zip(paths, [0, *sizes], [*sizes[:-1], len(edited)], strict=False):
            path.write_bytes(b"".join(edited[start:end]))
        assert not verify(log, keys=keys).sound, what
        assert not verify(log).sound, what
        count += 1
    assert count > 100


def test_a_cut_end_is_found_by_head_and_anchor_and_by_nothing_else(copy: Path) -> None:
    keys, log = AuditKeys.load(copy / "keys"), copy / "log"
    kept = anchor(log, keys)
    for path in reversed(segments(log)):
        lines = path.read_bytes().splitlines(keepends=True)
        for count in range(len(lines) - 1, -1, -1):
            path.write_bytes(b"".join(lines[:count]))
            at_checkpoint = (
                b'"kind":"checkpoint"' in lines[count - 1] if count else path != segments(log)[0]
            )
            owner, opening, outsider = found(log, keys)
            assert owner
            assert opening
            assert bool(outsider) == (not at_checkpoint), f"{path.name} {count}"
            assert not verify(log, anchors=[kept]).sound
        path.unlink()
    with pytest.raises(AuditError, match="there is no log, and 9 records were acknowledged"):
        AuditLog.open(log, keys)
    assert "there is no log" in verify(log, keys=keys).problem


def test_an_older_state_put_back_is_found(copy: Path, tmp_path: Path) -> None:
    log, keys = copy / "log", AuditKeys.load(copy / "keys")
    shutil.copytree(log, tmp_path / "older")
    write(log, keys, 1, first=10)
    shutil.rmtree(log)
    shutil.copytree(tmp_path / "older", log)
    with pytest.raises(AuditError, match="ends with record 9, and record 10 was acknowledged"):
        AuditLog.open(log, keys)
    assert verify(log).sound  # signed, whole, and old: no one who lacks head and anchor can tell


@pytest.mark.parametrize(
    "what", ["file gone", "first file gone", "another log's line", "own key", "line after the end"]
)
def test_other_attacks_are_found(what: str, copy: Path, tmp_path: Path) -> None:
    log, keys = copy / "log", AuditKeys.load(copy / "keys")
    paths = segments(log)
    if what == "file gone":
        paths[1].unlink()
    elif what == "first file gone":
        paths[0].unlink()
    elif what == "line after the end":
        with paths[-1].open("ab") as file:
            fields = json.loads(lines_of(log)[-1][-2])
            file.write(
                canonical({**fields, "number": 10, "prev": hash_line(lines_of(log)[-1][-1][:-1])})
                + b"\n"
            )
    else:
        forger = AuditKeys.create(tmp_path / "forger")
        write(tmp_path / "forged", forger, 9)
        if what == "own key":
            shutil.rmtree(log)
            shutil.copytree(tmp_path / "forged", log)
            assert verify(log).sound  # nobody vouches for the key: the report says so
            assert not verify(log).attested
            assert not verify(log, public_keys=keys.public_keys).sound
            assert not verify(log, keys=AuditKeys(tmp_path / "forger", keys.masters)).sound
        else:
            with paths[-1].open("ab") as file:
                file.write(lines_of(tmp_path / "forged")[0][1])
    assert not verify(log, keys=keys).sound
    if "file gone" not in what:  # opening reads the newest file, which no other file can change
        with pytest.raises(AuditError, match="aegis audit verify"):
            AuditLog.open(log, keys)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_edit_is_found(data: st.DataObject, made: Path, tmp_path: Path) -> None:
    log, keys = tmp_path / "log", AuditKeys.load(made / "keys")
    shutil.copytree(made / "log", log, dirs_exist_ok=True)
    path = data.draw(st.sampled_from(segments(log)))
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 2000)))
    put = data.draw(
        st.one_of(
            st.binary(max_size=20), st.just(whole[end : end + 700]), st.sampled_from(all_lines(log))
        )
    )
    edited = whole[:start] + put + whole[end:]
    path.write_bytes(edited)
    assert verify(log, keys=keys).sound == (edited == whole)


def test_the_message_names_file_line_and_difference(copy: Path) -> None:
    log, keys = copy / "log", AuditKeys.load(copy / "keys")
    path = segments(log)[0]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b'"ALLOW"', b'"DENY"'), *lines[3:]]))
    assert verify(log, keys=keys).problem == (
        "segment-000001.jsonl, line 4 (record 1 came before it): does not carry the hash of the line before it: "
        "one of the two was changed, or one dropped"
    )
    with pytest.raises(AuditError, match="has no audit log"):
        verify(copy / "nothing")


# cut-off writes


def interrupted(tmp_path: Path) -> tuple[Path, AuditKeys, bytes, int, bytes]:
    """A log whose process died after record 3; its bytes, where record 3 begins, and the head of
    before record 3."""
    keys = AuditKeys.create(tmp_path / "keys")
    log = AuditLog.open(tmp_path / "log", keys)
    log.append(entry(1))
    log.append(entry(2))
    (path,) = segments(tmp_path / "log")
    size, head = len(path.read_bytes().rstrip(b"\0")), (keys.folder / "head").read_bytes()
    log.append(entry(3))
    log._release()
    return tmp_path / "log", keys, path.read_bytes().rstrip(b"\0"), size, head


def test_a_cut_off_write_is_set_aside_and_an_acknowledged_one_never(tmp_path: Path) -> None:
    log, keys, whole, size, head = interrupted(tmp_path)
    (path,) = segments(log)
    for cut in range(size, len(whole), 3):
        path.write_bytes(whole[:cut])
        assert all(found(log, keys)[:2]), cut  # the head knows of record 3
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


def test_a_whole_line_changed_after_a_power_cut_is_not_taken_for_a_cut_off_one(
    tmp_path: Path,
) -> None:
    log, keys, whole, size, head = interrupted(tmp_path)
    (keys.folder / "head").write_bytes(head)
    (path,) = segments(log)
    path.write_bytes(whole[:size] + whole[size:].replace(b'"ALLOW"', b'"DENY"'))
    with pytest.raises(AuditError, match="one of the two was changed"):
        AuditLog.open(log, keys)
    path.write_bytes(whole)
    AuditLog.open(log, keys).close()


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
        log._salts._cached_path = Path()  # read anew
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


# processes and threads


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


# keys


def test_keys_are_the_owners_alone(tmp_path: Path) -> None:
    keys = AuditKeys.create(tmp_path / "deep" / "keys")
    path = keys.folder / "keys.json"
    assert AuditKeys.load(keys.folder, {}) == keys
    with pytest.raises(AuditError, match="exists already"):
        AuditKeys.create(keys.folder)
    assert keys.active.secret.hex() not in repr(keys)
    with pytest.raises(
        AuditError, match="no such file; set AEGIS_AUDIT_KEY, name the folder with --keys"
    ):
        AuditKeys.load(tmp_path, {})
    if os.name == "posix":
        write(tmp_path / "log", keys, 1)
        private = [path for path in keys.folder.rglob("*") if path.is_file()]
        assert {path.name for path in private} >= {"keys.json", "head", "000001.bin"}
        assert all(
            path.stat().st_mode & 0o077 == 0
            for path in [keys.folder, *private, *segments(tmp_path / "log")]
        )
        path.chmod(0o640)
        with pytest.raises(
            AuditError, match="must be readable by its owner alone, mode is 0640; run: chmod 600"
        ):
            AuditKeys.load(keys.folder, {})
        path.chmod(0o600)
    path.write_text("{}")
    with pytest.raises(AuditError, match="is not a file of audit keys"):
        AuditKeys.load(keys.folder, {})


def test_keys_from_the_environment_and_their_change(tmp_path: Path) -> None:
    one, two = "11" * 32, "22" * 32
    first = AuditKeys.load(tmp_path / "keys", {"AEGIS_AUDIT_KEY": one})
    write(tmp_path / "log", first, 2)
    with pytest.raises(AuditError, match="append a new one to it"):
        first.rotated()
    both = AuditKeys.load(tmp_path / "keys", {"AEGIS_AUDIT_KEY": f"{one}, {two}"})
    write(tmp_path / "log", both, 2, first=3)
    assert not (tmp_path / "keys" / "keys.json").exists()
    for trusted in (first.public_keys, {both.active.public_key}):
        report = verify(tmp_path / "log", public_keys=trusted)
        assert (report.sound, report.attested, report.public_keys[-1]) == (
            True,
            True,
            both.active.public_key,
        )
    assert check(tmp_path / "log", both, 1, "final", "final 1")
    assert check(tmp_path / "log", both, 4, "final", "final 4")
    alone = AuditKeys.load(tmp_path / "keys", {"AEGIS_AUDIT_KEY": two})
    write(tmp_path / "log", alone, 1, first=5)
    with pytest.raises(AuditError, match="record 1 was made with key"):
        check(tmp_path / "log", alone, 1, "final", "final 1")
    with pytest.raises(AuditError, match="head: holds nothing signed by these keys"):
        AuditLog.open(tmp_path / "log", first)
    with pytest.raises(
        AuditError, match="AEGIS_AUDIT_KEY: a master key must be 64 hexadecimal digits"
    ):
        AuditKeys.load(tmp_path, {"AEGIS_AUDIT_KEY": "secret"})


def test_a_forger_cannot_name_a_trusted_key_as_successor(tmp_path: Path) -> None:
    """Whoever only knows a public key can write a change of keys to it, but not go on from
    there."""
    trusted, forger = AuditKeys.create(tmp_path / "trusted"), AuditKeys.create(tmp_path / "forger")
    write(tmp_path / "log", forger, 1)
    log = AuditLog.open(tmp_path / "log", forger)
    rotate = log._written.chain.add(
        "rotate", time="", public_key=trusted.active.public_key, new_key=trusted.active.id
    )
    sealed, chain = rotate[1].sign(forger.active.sign, time="")
    log._put([rotate[0], sealed], chain)
    log._release()
    assert verify(tmp_path / "log").sound
    report = verify(tmp_path / "log", public_keys=trusted.public_keys)
    assert "which is none of the keys given" in report.problem


def test_an_erased_record_is_shut_for_ever_and_the_chain_stays(copy: Path) -> None:
    log, keys = copy / "log", AuditKeys.load(copy / "keys")
    with pytest.raises(AuditError, match="has no record 99; nothing was erased"):
        erase(log, keys, [3, 99], reason="asked for")
    assert check(log, keys, 3, "final", "final 3")
    with AuditLog.open(log, keys) as server:  # erasing need not wait for the server
        erase(log, keys, [3, 8], reason="asked for")
        server.append(entry(10))
    for number in (3, 8):
        with pytest.raises(AuditError, match=f"the key of record {number} was erased"):
            check(log, keys, number, "final", f"final {number}")
    assert all(
        check(log, keys, number, "final", f"final {number}") for number in (1, 2, 4, 5, 6, 7, 9, 10)
    )
    assert verify(log, keys=keys).sound
    AuditLog.open(log, keys).close()
    (note,) = verify(log, keys=keys).notes
    assert (note["kind"], note["numbers"], note["reason"]) == ("erased", [3, 8], "asked for")
    AuditLog.open(log, keys).close()
    assert len(verify(log, keys=keys).notes) == 1


# breaks


def test_an_accepted_break_lets_the_log_go_on_and_is_named_for_ever(copy: Path) -> None:
    log, keys = copy / "log", AuditKeys.load(copy / "keys")
    with pytest.raises(BadInputError, match="so there is nothing to accept"):
        accept(log, keys, reason="none")
    damaged = segments(log)[-1]
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    before = {path.name: path.read_bytes() for path in segments(log)}
    with pytest.raises(
        AuditError, match=r"Nothing is appended to it; look with: aegis audit verify"
    ) as refused:
        AuditLog.open(log, keys)
    assert refused.value.exit_code == 2
    with pytest.raises(BadInputError, match="--reason must be"):
        accept(log, keys, reason="  ")
    assert accept(log, keys, reason="disk replaced") == 9
    write(log, keys, 2, first=10)
    report = verify(log, keys=keys)
    assert report.sound
    assert (report.records, report.newest) == (2, 11)
    assert [(found["reason"], found["after"]) for found in report.breaks] == [("disk replaced", 9)]
    assert {name: (log / name).read_bytes() for name in before} == before
    assert check(log, keys, 11, "final", "final 11")
    assert check(log, keys, 1, "final", "final 1")
    damaged.write_bytes(before[damaged.name] + b" ")
    assert "was changed since the break" in verify(log, keys=keys).problem
    damaged.unlink()
    assert "is gone, and was there when the break" in verify(log, keys=keys).problem
    assert accept(log, keys, reason="and again") == 11
    assert verify(log, keys=keys).sound


@pytest.mark.parametrize("lost", ["head", "log"])
def test_a_lost_head_or_log_needs_accepting(lost: str, copy: Path) -> None:
    log, keys = copy / "log", AuditKeys.load(copy / "keys")
    if lost == "head":
        (keys.folder / "head").unlink()
    else:
        shutil.rmtree(log)
    with pytest.raises(AuditError, match="no head file" if lost == "head" else "there is no log"):
        AuditLog.open(log, keys)
    assert accept(log, keys, reason="moved house") == 9
    write(log, keys, 1, first=10)
    assert verify(log, keys=keys).sound


# for others


def test_an_export_stands_alone(copy: Path) -> None:
    log, keys, output = copy / "log", AuditKeys.load(copy / "keys"), copy / "export.jsonl"
    kept = anchor(log, keys)
    (copy / "anchor.json").write_text(json.dumps(kept))
    assert read_anchor(copy / "anchor.json") == kept
    export(log, output, keys=keys)
    whole = output.read_bytes()
    report = verify(output, public_keys=[keys.masters[0].public_key], anchors=[kept])
    assert (report.sound, report.attested, report.records, report.anchors) == (True, True, 9, 1)
    for place in range(whole.index(b"\n") + 1, len(whole), 97):
        output.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert not verify(output, public_keys=keys.public_keys).sound
    output.write_bytes(whole)
    (script,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    arguments = [sys.executable, "-c", script, str(output), keys.masters[0].public_key]
    assert (
        subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
        == "sound: 9 records\n"
    )
    output.write_bytes(whole.replace(b'"ALLOW"', b'"DENY"', 1))
    assert subprocess.run(arguments, capture_output=True, text=True, check=False).returncode != 0


def test_what_is_not_yet_signed_is_the_owners_to_see(tmp_path: Path) -> None:
    """Records are sealed at once and signed each second: an auditor's view ends at the newest
    checkpoint."""
    log, keys, output = (
        tmp_path / "log",
        AuditKeys.create(tmp_path / "keys"),
        tmp_path / "export.jsonl",
    )
    with AuditLog.open(log, keys, sign_every_s=3600) as server:
        for number in (1, 2, 3):
            server.append(entry(number))
        report = verify(log, keys=keys)
        assert (report.sound, report.records, report.writes, report.checkpoints) == (True, 3, 4, 1)
        assert "are not signed: its end was cut, or a server is writing it" in verify(log).problem
        assert anchor(log, keys)["checkpoint"]["after"] == 0
        export(log, output, keys=keys)
        assert verify(output, public_keys=keys.public_keys).newest == 0
        server.sign()
        server.sign()
        assert verify(log, public_keys=keys.public_keys).records == 3
        server.append(entry(4))
        export(log, output, keys=keys)
        assert verify(output, public_keys=keys.public_keys).newest == 3
    report = verify(log, public_keys=keys.public_keys)
    assert (report.records, report.checkpoints) == (4, 3)


def test_a_seal_made_anew_without_the_key_is_found(tmp_path: Path) -> None:
    log, keys = tmp_path / "log", AuditKeys.create(tmp_path / "keys")
    server = AuditLog.open(log, keys, sign_every_s=3600)
    server.append(entry(1))
    server._release()
    (path,) = segments(log)
    begun, first, record, seal = path.read_bytes().rstrip(b"\0").splitlines(keepends=True)
    changed = record.replace(b'"ALLOW"', b'"DENY"')
    again = canonical({**json.loads(seal), "prev": hash_line(changed[:-1])}) + b"\n"
    path.write_bytes(begun + first + changed + again)
    with pytest.raises(AuditError, match=r"line 4 .* is a seal that key .* did not make"):
        AuditLog.open(log, keys)


def test_what_is_no_anchor_or_export_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{}")
    with pytest.raises(
        AuditError, match="is not an anchor; give a file that `aegis audit anchor -o FILE` wrote"
    ):
        read_anchor(tmp_path / "x")
    assert "is not the header of an exported log" in verify(tmp_path / "x").problem


def test_a_new_log_and_an_unknown_key_are_told_apart(tmp_path: Path) -> None:
    keys = AuditKeys.create(tmp_path / "keys")
    with AuditLog.open(tmp_path / "log", keys) as log:
        assert log.count == 0
    assert verify(tmp_path / "log", keys=keys).records == 0
    other = AuditKeys.create(tmp_path / "other")
    with pytest.raises(AuditError, match="which is none of the keys given"):
        AuditLog.open(tmp_path / "log", other)
    assert log_module.SEGMENT_BYTES >= 1 << 20
