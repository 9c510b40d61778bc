"""Erasing records and accepting breaks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aegis.audit import AuditKeys, AuditLog
from aegis.audit.reader import segments
from aegis.audit.repair import accept, erase
from aegis.audit.verify import check, verify
from aegis.errors import AuditError, BadInputError
from tests.audit.logs import entry, write


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
