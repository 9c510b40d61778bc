"""The verb as a user calls it, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from aegis.cli import app
from aegis.errors import BadInputError
from aegis.model.heads import DecisionHead
from aegis.protocol.decisions import Decision
from tests.conftest import byte_tokenizer, tiny_model

SOAK_S = float(os.environ.get("AEGIS_SOAK_S", "120"))


def model_folder(folder: Path, decision: Decision = Decision.ESCALATION) -> Path:
    """A tiny model whose head nearly always says the same, as `aegis run` would leave it."""
    from aegis.model.tags import add_tags

    tokenizer, model = byte_tokenizer(), tiny_model(max_position_embeddings=2048)
    add_tags(tokenizer, model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    head = DecisionHead(32)
    head.linear.bias.data[int(decision)] = 9.0
    head.save(folder)
    return folder


@contextlib.contextmanager
def serving(
    model: Path, *options: str, limit_s: float = 60
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`aegis serve` in a process of its own, ready; what it tells on stderr goes to server.log
    beside the model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        "serve",
        str(model),
        "--port",
        str(port),
        "--threads",
        "1",
        "--section-tokens",
        "6",
        "--final-tokens",
        "12",
    ]
    with (model.parent / "server.log").open(
        "w", encoding="utf-8"
    ) as log:  # a full pipe would stop the server
        process = subprocess.Popen(
            [sys.executable, "-m", "aegis", *arguments, *options],
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(f"{url}/readyz", process, limit_s=limit_s)
        yield url, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def wait_until_up(url: str, process: subprocess.Popen[str], *, limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url)
            return
        time.sleep(0.1)


def called(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    folder.mkdir()
    return model_folder(folder)


def test_ask_escalate_review_answer_and_verify(model: Path) -> None:
    with serving(model) as (url, process):
        asked = httpx.post(f"{url}/think", json={"query": "Pay the bill?"}, timeout=60).json()
        assert (asked["decision"], asked["escalated"]) == ("ESCALATION", True)
        queue = model.parent / "escalations.db"
        listed = called("review", "list", "--cases", str(queue), "--json")
        assert [case["query"] for case in json.loads(listed.stdout)] == ["Pay the bill?"]
        shown = called("review", "show", asked["id"][:10], "--cases", str(queue))
        assert "Pay the bill?" in shown.stdout
        done = called(
            "review",
            "answer",
            asked["id"],
            "Yes, pay it.",
            "--cases",
            str(queue),
            "--reviewer",
            "Mai",
        )
        assert done.exit_code == 0
        again = called("review", "answer", asked["id"], "No.", "--cases", str(queue))
        assert "that answer stands" in str(again.exception)
        seen = httpx.get(f"{url}/escalations/{asked['id']}").json()
        assert (seen["state"], seen["answer"], seen["reviewer"]) == (
            "resolved",
            "Yes, pay it.",
            "Mai",
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    told = (model.parent / "server.log").read_text(encoding="utf-8")
    assert "Pay the bill" not in told
    assert "no tokens" in told
    verified = called("audit", "verify", str(model.parent / "audit"))
    assert verified.exit_code == 0, verified.output


def test_what_cannot_be_served_is_told_before_anything_is_loaded(
    model: Path, tmp_path: Path
) -> None:
    def refused(*arguments: str) -> str:
        result = called("serve", *arguments)
        assert isinstance(result.exception, BadInputError)
        assert result.exception.exit_code == 2
        return str(result.exception)

    (tmp_path / "none").mkdir()
    assert "no such model" in refused(str(tmp_path / "missing"))
    assert "config.json" in refused(str(tmp_path / "none"), "--port", "8765")
    assert "aegis token new" in refused(str(model), "--host", "0.0.0.0")
    assert "no such token file" in refused(str(model), "--tokens", str(tmp_path / "tokens.json"))
    assert "keys.json" in refused(
        str(model),
        "--keys",
        str(tmp_path / "keys"),
        "--audit",
        str(tmp_path / "log"),
        "--port",
        "8766",
    )
    assert "no such model" in refused(str(tmp_path / "missing"), "--answer-s", "86400")
    assert "hf or gguf" in refused(str(model), "--engine", "other")
    (tmp_path / "cases.db").write_text(
        "no database at all, but a letter of some length", encoding="utf-8"
    )
    assert "no escalation queue" in refused(
        str(model), "--cases", str(tmp_path / "cases.db"), "--port", "8767"
    )
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(1)
        assert "choose another" in refused(str(model), "--port", str(held.getsockname()[1]))


@pytest.mark.timeout(2 * SOAK_S + 300)
def test_two_minutes_of_sixteen_clients_that_come_and_go(tmp_path: Path) -> None:
    """AEGIS_SOAK_S=1800 makes half an hour of it."""
    import asyncio

    from aegis.engine.transformers_engine import TRIM_S
    from tests.serve.live import soak

    (tmp_path / "model").mkdir()
    folder = model_folder(tmp_path / "model", Decision.DENY)
    with serving(folder, "--name", "tiny", "--rate", "0") as (url, process):
        watched = psutil.Process(process.pid)
        warm = asyncio.run(soak(url, clients=16, seconds=SOAK_S / 4))
        time.sleep(TRIM_S + 2)
        before = watched.memory_info().rss
        found = asyncio.run(soak(url, clients=16, seconds=SOAK_S))
        time.sleep(TRIM_S + 2)
        grown = watched.memory_info().rss / before - 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    print(f"{warm} then {found}; memory {before / 2**20:.0f} MiB, {100 * grown:+.2f} %")
    assert warm["other"] == found["other"] == 0
    assert found["whole"] > 0
    assert found["left"] > 0
    assert grown <= 0.02
    assert called("audit", "verify", str(tmp_path / "audit")).exit_code == 0
