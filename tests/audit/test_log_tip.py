"""A cut end shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aegis.audit import AuditKeys, AuditLog
from aegis.audit.reader import segments
from aegis.audit.verify import anchor, verify
from aegis.errors import AuditError
from tests.audit.logs import problems, write


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
            owner, opening, outsider = problems(log, keys)
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
