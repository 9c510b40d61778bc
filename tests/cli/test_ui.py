"""The verb as a user calls it, in a process of its own."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.test_serve import called, model_folder, wait_until_up
from tests.web.runs import new_run


@contextlib.contextmanager
def showing(runs: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`aegis ui` in a process of its own, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "aegis", "ui", str(runs), "--port", str(port), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(f"{url}/ui/runs", process, limit_s=60)
        yield url, process
    finally:
        process.kill()
        process.communicate()


def test_it_shows_the_runs_until_it_is_interrupted(tmp_path: Path) -> None:
    name = new_run(tmp_path / "runs").session_id
    with showing(tmp_path / "runs") as (url, process):
        assert name in httpx.get(f"{url}/ui/runs").text
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
        assert process.returncode == 0
        assert told == f"· {url}/ui\n"


@pytest.mark.slow
def test_a_model_can_be_asked_and_its_cases_reviewed(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "runs" / "aegis_v2_x" / "model")
    with (
        showing(tmp_path / "runs", "--model", str(model)) as (url, process),
        httpx.Client(headers={"origin": url}, timeout=60) as browser,
    ):
        asked = {"model": "aegis", "messages": [{"role": "user", "content": "May I?"}]}
        answer = browser.post(f"{url}/v1/chat/completions", json=asked).json()
        assert answer["aegis"]["escalated"]
        for path in ("next", f"{answer['id'].removeprefix('chatcmpl-')}/answer"):
            form = {"decision": "DENY", "note": "not here"}
            assert browser.post(f"{url}/ui/review/{path}", data=form).is_redirect
        verified = browser.post(f"{url}/ui/audit").text
        assert "Sound: 3 records" in verified
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=40)
        assert process.returncode == 0
    cases = str(model.parent / "escalations.db")
    assert '"rationale": "not here"' in called("review", "export", "--cases", cases).stdout


def test_bad_places_are_told(tmp_path: Path) -> None:
    outcome = called("ui", str(tmp_path / "none"))
    assert "no such folder" in str(outcome.exception)
    outcome = called("ui", str(tmp_path), "--model", str(tmp_path / "none"))
    assert "no such model folder" in str(outcome.exception)
