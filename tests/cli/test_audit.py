"""aegis audit: every verb on one log, its exit codes and its messages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aegis.audit import AuditEntry, AuditKeys, AuditLog
from aegis.audit.reader import segments
from aegis.cli import main
from aegis.protocol.thinking import PrivateText

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line as a shell has it: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["aegis", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.delenv("AEGIS_AUDIT_KEY", raising=False)
    return call


def entry(number: int) -> AuditEntry:
    sections = {"task": PrivateText("private")}
    user = "hanako" if number == 2 else "taro"
    return AuditEntry(
        f"r{number}", user, "DENY", False, "tiny", "query", sections, f"final {number}", "answered"
    )


@pytest.fixture
def log(tmp_path: Path, run: Run) -> Path:
    assert run("key", "new", tmp_path / "log.keys")[0] == 0
    with AuditLog.open(tmp_path / "log", AuditKeys.load(tmp_path / "log.keys")) as opened:
        for number in (1, 2, 3):
            opened.append(entry(number))
    return tmp_path / "log"


def as_json(told: tuple[int, str, str], code: int = 0) -> Any:
    assert told[0] == code, told[2]
    return json.loads(told[1])


def test_verify_tells_what_it_was_held_to(log: Path, run: Run) -> None:
    report = as_json(run("verify", log, "--json"))
    assert (report["sound"], report["records"], report["head"], report["attested"]) == (
        True,
        3,
        True,
        True,
    )
    code, out, _ = run("verify", log)
    assert code == 0
    assert "3 records up to number 3" in out
    assert "the head in the keys folder" in out
    shutil.move(f"{log}.keys", f"{log}.elsewhere")
    (path,) = segments(log)
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))  # cut at a checkpoint
    for text in (path.read_bytes(), whole):
        path.write_bytes(text)
        code, out, _ = run("verify", log)
        assert code == 1
        assert f"NOT SOUND  {log}: its keys folder {log}.keys is gone" in out
        assert run("export", log, "-o", log.parent / "export")[0] == 2
    public_key = as_json(run("key", "show", f"{log}.elsewhere", "--json"))["keys"][0]["public_key"]
    assert "by a key that you gave" in run("verify", log, "--public-key", public_key)[1]
    assert run("verify", log, "--public-key", "00" * 32)[0] == 1
    assert "must be 64 hexadecimal digits, got 'x'" in run("verify", log, "--public-key", "x")[2]
    for verb in (("verify",), ("show",), ("show", "--number", 1), ("show", "--json")):
        code, out, err = run(verb[0], log.parent / "none", *verb[1:])
        assert (code, out) == (2, "")
        assert "none: there is no audit log here; `aegis serve` begins one" in err


def test_damage_exits_1_and_accept_lets_it_go_on(log: Path, run: Run) -> None:
    assert run("accept", log, "--reason", "why")[0] == 2
    kept = log.parent / "anchor.json"
    assert run("anchor", log, "-o", kept)[0] == 0
    assert as_json(run("anchor", log))["checkpoint"]["after"] == 3
    assert (
        "held to    the head in the keys folder and 1 anchor(s)"
        in run("verify", log, "--anchor", kept)[1]
    )
    (path,) = segments(log)
    path.write_bytes(path.read_bytes().replace(b'"DENY"', b'"ALLOW"', 1))
    code, out, _ = run("verify", log)
    assert code == 1
    assert "segment-000001.jsonl, line 4" in out
    assert as_json(run("verify", log, "--json"), code=1)["sound"] is False
    for verb in (("export", log, "-o", log.parent / "x"), ("anchor", log)):
        code, _, err = run(*verb)
        assert code == 2
        assert "the log is not sound" in err
    assert run("accept", log, "--reason", "tried it out")[0] == 0
    code, out, _ = run("verify", log)
    assert code == 0
    assert "after record 3, accepted" in out
    assert "tried it out" in out
    code, out, _ = run("verify", log, "--anchor", kept)  # what was anchored is behind the break
    assert code == 1
    assert "does not hold the anchor after record 3" in out


def test_show_names_no_words_and_finds_a_user(log: Path, run: Run) -> None:
    code, out, _ = run("show", log)
    assert code == 0
    assert all(text in out for text in ("r1", "r2", "r3", "DENY", "think-task"))
    assert "hanako" not in out
    assert [row["number"] for row in as_json(run("show", log, "--user", "hanako", "--json"))] == [2]
    assert [row["number"] for row in as_json(run("show", log, "--last", 2, "--json"))] == [2, 3]
    assert as_json(run("show", log, "--number", 1, "--json"))[0]["request_id"] == "r1"
    assert "has no record 7" in run("show", log, "--number", 7)[2]


def test_check_says_whether_a_text_is_the_one(log: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("final 2")
    code, out, _ = run("check", log, 2, "final", "--file", tmp_path / "text")
    assert (code, out) == (0, "record 2 commits to this text as its final\n")
    assert (
        as_json(run("check", log, 1, "final", "--file", tmp_path / "text", "--json"), code=1)[
            "same"
        ]
        is False
    )
    assert "cannot be read as UTF-8 text" in run("check", log, 1, "final", "--file", tmp_path)[2]


def test_export_rotate_and_erase(log: Path, run: Run, tmp_path: Path) -> None:
    first = as_json(run("key", "show", f"{log}.keys", "--json"))["keys"][0]["public_key"]
    assert [key["active"] for key in as_json(run("rotate", log, "--json"))["keys"]] == [False, True]
    assert as_json(run("erase", log, 1, 3, "--reason", "asked for", "--json")) == {
        "erased": [1, 3],
        "noted": True,
    }
    code, _, err = run("check", log, 3, "final", "--file", log.parent / "log.keys" / "keys.json")
    assert code == 2
    assert "the key of record 3 was erased" in err
    code, out, _ = run("export", log, "-o", tmp_path / "out.jsonl")
    assert code == 0
    assert "3 records" in out
    assert (
        as_json(run("verify", tmp_path / "out.jsonl", "--public-key", first, "--json"))["attested"]
        is True
    )
    assert (
        "erased     2 record key(s)"
        in run("verify", tmp_path / "out.jsonl", "--public-key", first)[1]
    )


def test_while_the_server_runs_rotation_and_notes_wait(log: Path, run: Run) -> None:
    with AuditLog.open(log, AuditKeys.load(log.with_name("log.keys"))) as server:
        code, _, err = run("rotate", log)
        assert code == 0
        assert "takes it when the server next starts" in err
        assert as_json(run("erase", log, 1, "--reason", "asked for", "--json"))["noted"] is False
        server.append(entry(4))
        assert run("verify", log)[0] == 0
    AuditLog.open(log, AuditKeys.load(log.with_name("log.keys"))).close()
    report = as_json(run("verify", log, "--json"))
    assert [note["numbers"] for note in report["notes"]] == [[1]]
    assert len(report["public_keys"]) == 2
