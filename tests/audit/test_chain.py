"""Every change of a line shows."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.audit import AuditKeys, AuditLog
from aegis.audit.chain import canonical, hash_line
from aegis.audit.reader import segments
from aegis.audit.verify import verify
from aegis.errors import AuditError
from tests.audit.logs import all_lines, entry, lines_of, problems, write


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
            assert all(problems(tmp_path / "log", keys)), place
        else:
            assert not verify(tmp_path / "log", keys=keys).sound, place
    path.write_bytes(whole)
    assert not any(problems(tmp_path / "log", keys))


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
