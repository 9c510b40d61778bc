from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from aegis.cli import main
from aegis.cli.notify import run_notify_command, tell_end


@pytest.mark.skipif(os.name == "nt", reason="written for a POSIX shell")
def test_the_users_command_finds_the_end_in_its_environment(tmp_path: Path) -> None:
    evil = 'x"; touch hacked; echo $(touch hacked) `touch hacked`'
    command = f'printf "%s\\n" "$AEGIS_RUN" "$AEGIS_STATE" "$AEGIS_MESSAGE" > {tmp_path / "told"}'
    assert run_notify_command(command, "a b", "failed", evil) == "told of failed"
    assert (tmp_path / "told").read_text().splitlines() == ["a b", "failed", evil]
    ended = run_notify_command("exit 3", "a", "failed", "b")
    assert ended == "the command ended with exit code 3; the run is not affected"
    slow = run_notify_command("sleep 30", "a", "failed", "b", limit_s=0.2)
    assert slow == "the command took longer than 0 s and was ended"
    assert "cannot be started" in run_notify_command("true", "a\0b", "failed", "b")


@pytest.mark.skipif(os.name == "nt", reason="written for a POSIX shell")
@pytest.mark.parametrize("verb", [("run",), ("train", "sft")])
def test_a_long_verb_tells_its_end(
    verb: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = 'echo "$AEGIS_RUN: $AEGIS_STATE: $AEGIS_MESSAGE" > told'
    monkeypatch.setattr(sys, "argv", ["aegis", *verb, "nowhere.yaml", "--notify", command])
    with pytest.raises(SystemExit):
        main()
    told = (tmp_path / "told").read_text()
    assert told.startswith(f"{' '.join(verb)} nowhere.yaml --notify")
    assert ": failed: error: nowhere.yaml" in told
    assert "· --notify: told of failed" in capsys.readouterr().err
    (tmp_path / "told").unlink()
    monkeypatch.setattr(sys, "argv", ["aegis", *verb, "nowhere.yaml"])
    with pytest.raises(SystemExit):
        main()
    assert not (tmp_path / "told").exists()


def test_only_a_terminal_rings_and_only_after_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    tell_end(["run"], 0, "", begun=now - 3600)
    assert capsys.readouterr().out == ""  # nobody hears it
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    tell_end(["run"], 0, "", begun=now)
    assert capsys.readouterr().out == ""
    tell_end(["run"], 1, "", begun=now - 3600)
    assert capsys.readouterr().out == "\a"
