"""What is wrong with the files is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aegis.audit import AuditKeys, AuditLog
from aegis.audit.chain import canonical, hash_line
from aegis.audit.reader import segments
from aegis.audit.verify import verify
from aegis.errors import AuditError
from tests.audit.logs import interrupted, lines_of, write


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


def test_the_message_names_file_line_and_difference(copy: Path) -> None:
    log, keys = copy / "log", AuditKeys.load(copy / "keys")
    path = segments(log)[0]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b'"ALLOW"', b'"DENY"'), *lines[3:]]))
    assert verify(log, keys=keys).problem == (
        "segment-000001.jsonl, line 4 (record 1 came before it): does not carry the hash of "
        "the line before it: one of the two was changed, or one dropped"
    )
    with pytest.raises(AuditError, match="there is no audit log here"):
        verify(copy / "nothing")


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
