from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import httpx
import pytest

from aegis.protocol.decisions import Decision
from tests.serve.fakes import FakeEngine, house, thinking
from tests.serve.live import HEAD, connected, living, soak, soon


def test_more_than_may_wait_are_turned_away_and_nothing_is_lost(tmp_path: Path) -> None:
    engine = FakeEngine(hold=threading.Event())
    made = house(tmp_path, engine, places=2)
    with made.client() as client:
        found: list[int] = []

        def ask() -> None:
            found.append(client.post("/think", json={"query": "hi"}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        while len(engine.prompts) < 2:
            pass
        refused = client.post("/think", json={"query": "hi"})
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert engine.hold
        engine.hold.set()
        for thread in threads:
            thread.join()
        assert found == [200, 200]
        assert client.post("/think", json={"query": "hi"}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_work(tmp_path: Path, stream: bool) -> None:
    engine = FakeEngine(hold=threading.Event())
    made = house(tmp_path, engine, keep_alive_s=0.05, places=1)
    with living(made) as (url, _):
        body = json.dumps({"query": "hi", "stream": stream}).encode()
        with connected(url) as raw:
            raw.sendall(f"{HEAD}{len(body)}\r\n\r\n".encode() + body)
            soon(lambda: engine.prompts)
        soon(lambda: engine.cancelled == 1)
        assert engine.hold
        engine.hold.set()
        soon(lambda: httpx.post(f"{url}/think", json={"query": "hi"}).status_code == 200)
        assert engine.thought == 1
        assert len(made.audit.entries) == 1


def test_many_clients_that_come_and_go(tmp_path: Path) -> None:
    """A short soak: sixteen clients, a third of which leave early; no 5xx, every answer whole and
    recorded."""
    engine = FakeEngine(
        says=lambda *_: thinking("It is Paris, on the Seine."), seconds=0.02, judges=_mixed
    )
    made = house(tmp_path, engine, keep_alive_s=0.01)
    with living(made) as (url, _):
        statuses = asyncio.run(soak(url, clients=16, seconds=2.0))
    assert statuses["other"] == 0
    assert statuses["whole"] > 50
    assert statuses["left"] > 10
    assert statuses["whole"] <= len(made.audit.entries)
    assert made.metrics.working._value.get() == 0


def _mixed(prompt: str) -> Decision:
    return Decision(len(prompt) % 4)
