"""Keys are their owner's alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.audit import AuditKeys, AuditLog
from aegis.audit.reader import segments
from aegis.audit.repair import accept
from aegis.audit.verify import check, verify
from aegis.errors import AuditError, AuditUnavailableError
from tests.audit.logs import entry, write


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


def test_what_opens_a_record_is_master_and_salt_together(copy: Path, tmp_path: Path) -> None:
    keys, log = AuditKeys.load(copy / "keys"), copy / "log"
    other = AuditKeys.create(tmp_path / "other")
    with pytest.raises(AuditError, match=r"made with key .* which is not among those given"):
        check(log, AuditKeys(keys.folder, other.masters), 3, "final", "final 3")
    shutil.rmtree(keys.folder / "salts")
    with pytest.raises(AuditError, match="the key of record 3 was erased"):
        check(log, keys, 3, "final", "final 3")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


LOSS: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": cut,
    "emptied": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("lose", LOSS.values(), ids=LOSS)
def test_a_lost_salt_that_no_note_names_is_not_sound(
    lose: Callable[[Path], object], copy: Path
) -> None:
    keys, log = AuditKeys.load(copy / "keys"), copy / "log"
    older, newer = sorted((keys.folder / "salts").iterdir())  # of records 1 to 8, and of 9
    kept = older.read_bytes()
    lose(older)
    assert "are gone, cut off or zeroed, and no note says" in verify(log, keys=keys).problem
    older.write_bytes(kept)
    assert verify(log, keys=keys).sound
    lose(newer)  # the block that a new record would take its salt from
    assert not verify(log, keys=keys).sound
    with pytest.raises(AuditError, match="the salts of the records before 10 are gone"):
        AuditLog.open(log, keys)
    assert accept(log, keys, reason="disk replaced") == 9
    write(log, keys, 2, first=10)
    assert verify(log, keys=keys).sound
    assert check(log, keys, 10, "final", "final 10")


def test_salts_that_go_while_the_log_is_written_stop_it(copy: Path) -> None:
    keys, log = AuditKeys.load(copy / "keys"), copy / "log"
    with AuditLog.open(log, keys) as opened:
        assert opened.append(entry(10)) == 10
        (keys.folder / "salts").rename(copy / "away")
        with pytest.raises(AuditUnavailableError, match="so its answer must not leave"):
            opened.append(entry(11))
        (copy / "away").rename(keys.folder / "salts")
        assert opened.append(entry(11)) == 11
