"""What owner and auditor can verify."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aegis.audit import AuditKeys, AuditLog
from aegis.audit.verify import anchor, check, export, read_anchor, verify
from aegis.errors import AuditError
from tests.audit.logs import WORDS, entry

DOCS = Path(__file__).parents[2] / "docs" / "audit.md"


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


def test_an_export_stands_alone(copy: Path) -> None:
    log, keys, output = copy / "log", AuditKeys.load(copy / "keys"), copy / "export.jsonl"
    kept = anchor(log, keys)
    (copy / "anchor.json").write_text(json.dumps(kept))
    assert read_anchor(copy / "anchor.json") == kept
    with output.open("wb") as file:
        export(log, file, keys=keys)
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
        with output.open("wb") as file:
            export(log, file, keys=keys)
        assert verify(output, public_keys=keys.public_keys).newest == 0
        server.sign()
        server.sign()
        assert verify(log, public_keys=keys.public_keys).records == 3
        server.append(entry(4))
        with output.open("wb") as file:
            export(log, file, keys=keys)
        assert verify(output, public_keys=keys.public_keys).newest == 3
    report = verify(log, public_keys=keys.public_keys)
    assert (report.records, report.checkpoints) == (4, 3)


def test_what_is_no_anchor_or_export_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{}")
    with pytest.raises(
        AuditError, match="is not an anchor; give a file that `aegis audit anchor -o FILE` wrote"
    ):
        read_anchor(tmp_path / "x")
    assert "is not the header of an exported log" in verify(tmp_path / "x").problem
