"""Against a real uvicorn: the official client, disconnects, and an end that leaves nothing
hanging."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from aegis.errors import BadInputError
from aegis.protocol.decisions import Decision
from aegis.serve.middleware.access import is_loopback
from aegis.serve.server import Server, bind, freeze_loaded_objects, require_guarded
from tests.serve.fakes import FakeEngine, House, house, thinking


@contextlib.contextmanager
def living(made: House, *, grace_s: float = 5) -> Iterator[tuple[str, Server]]:
    """The server, in a thread of its own."""
    bound = bind("127.0.0.1", 0)
    bound.listen(16)
    server = Server(made.app, made.service, grace_s=grace_s)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    soon(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


HEAD = (
    "POST /think HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
)


def connected(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))


def soon(true: Callable[[], object], *, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_official_client_works_unmodified(tmp_path: Path) -> None:
    made = house(tmp_path, FakeEngine(seconds=0.1), keep_alive_s=0.03)
    asked: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which city?"},
    ]
    with (
        living(made) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert [model.id for model in client.models.list()] == ["tiny"]
        whole = client.chat.completions.create(
            model="tiny", messages=asked, max_tokens=50, temperature=0, seed=3, user="u"
        )
        assert whole.choices[0].message.content == "It is Paris."
        assert whole.choices[0].finish_reason == "stop"
        assert whole.choices[0].logprobs is None
        assert whole.usage
        assert whole.usage.completion_tokens == 3
        with client.chat.completions.create(
            model="tiny", messages=asked, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
        assert (
            "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            == "It is Paris."
        )
        assert chunks[-1].usage == whole.usage
        with pytest.raises(openai.BadRequestError, match="logprobs"):
            client.chat.completions.create(model="tiny", messages=asked, logprobs=True)
        with pytest.raises(openai.BadRequestError, match="n asks for"):
            client.chat.completions.create(model="tiny", messages=asked, n=2)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=asked)
        made.audit.broken = True
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="tiny", messages=asked)
        with pytest.raises(openai.APIError, match="recorded"):
            list(client.chat.completions.create(model="tiny", messages=asked, stream=True))


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


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_lets_answers_finish(tmp_path: Path, stream: bool) -> None:
    engine = FakeEngine(hold=threading.Event())
    made = house(tmp_path, engine, keep_alive_s=0.05)
    found: list[httpx.Response] = []
    with living(made) as (url, server):
        thread = threading.Thread(
            target=lambda: found.append(
                httpx.post(f"{url}/think", json={"query": "hi", "stream": stream}, timeout=20)
            )
        )
        thread.start()
        soon(lambda: engine.prompts)
        server.should_exit = True
        soon(made.service.draining.is_set)
        assert engine.hold
        engine.hold.set()
        thread.join()
    assert found[0].status_code == 200
    assert "Paris" in found[0].text.replace('"}\n\nevent: piece\ndata: ', "")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_ends_what_takes_too_long_in_order(tmp_path: Path, stream: bool) -> None:
    engine = FakeEngine(hold=threading.Event())
    made = house(tmp_path, engine, keep_alive_s=0.05)
    found: list[httpx.Response] = []
    with living(made, grace_s=0.3) as (url, server):
        thread = threading.Thread(
            target=lambda: found.append(
                httpx.post(f"{url}/think", json={"query": "hi", "stream": stream}, timeout=20)
            )
        )
        thread.start()
        soon(lambda: engine.prompts)
        time.sleep(0.1)
        server.should_exit = True
        thread.join()
    assert found[0].status_code == (200 if stream else 503)
    assert '"code":"stopping"' in found[0].text
    assert "Paris" not in found[0].text
    assert made.audit.entries == []


def test_a_body_that_never_ends_is_given_up(tmp_path: Path) -> None:
    made = house(tmp_path, body_s=0.3)
    with (
        living(made) as (url, _),
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as raw,
    ):
        raw.sendall(
            b'POST /think HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"qu'
        )
        assert b" 408 " in raw.recv(4096)


def test_a_body_larger_than_it_says_is_turned_away(tmp_path: Path) -> None:
    made = house(tmp_path, body_bytes=2000)
    with living(made) as (url, _):
        chunks = (b"x" * 500 for _ in range(100))
        with contextlib.suppress(
            httpx.TransportError
        ):  # the connection may be closed before all is sent
            answer = httpx.post(
                f"{url}/think", content=chunks, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 413
        assert httpx.post(f"{url}/think", json={"query": "hi"}).status_code == 200


def test_headers_tell_nothing_of_the_server(tmp_path: Path) -> None:
    with living(house(tmp_path)) as (url, _):
        answer = httpx.post(f"{url}/think", json={"query": "hi"})
    assert "server" not in answer.headers
    assert set(answer.headers) == {
        "date",
        "content-length",
        "content-type",
        "x-request-id",
        "x-content-type-options",
        "cache-control",
        "referrer-policy",
    }


def test_only_this_machine_without_tokens(tmp_path: Path) -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"))
    with pytest.raises(BadInputError, match="aegis token new"):
        require_guarded("0.0.0.0", None)
    require_guarded("0.0.0.0", tmp_path / "tokens.json")


def test_a_port_in_use_is_told() -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as held:
        held.listen(1)
        with pytest.raises(BadInputError, match="choose another"):
            bind("127.0.0.1", held.getsockname()[1])
    with pytest.raises(BadInputError, match="choose another"):
        bind("203.0.113.7", 1)


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


def test_garbage_does_not_wait_for_a_quarter_of_what_was_loaded() -> None:
    class Ring:
        def __init__(self) -> None:
            self.other = self

    loaded = [[] for _ in range(500_000)]
    try:
        freeze_loaded_objects()
        assert gc.get_freeze_count() > len(loaded)
        rings, recent = weakref.WeakSet[Ring](), deque[Ring](maxlen=10_000)
        for _ in range(60_000):
            recent.append(Ring())  # long enough for it to be counted as old
            rings.add(recent[-1])
        assert len(rings) < 40_000
    finally:
        gc.unfreeze()


def _mixed(prompt: str) -> Decision:
    return Decision(len(prompt) % 4)


async def soak(url: str, *, clients: int, seconds: float) -> dict[str, int]:
    """How many answers were whole, abandoned, turned away with 429, or anything else."""
    import random

    found = {"whole": 0, "left": 0, "busy": 0, "other": 0}
    until = time.monotonic() + seconds

    async def one(number: int) -> None:
        rng = random.Random(number)
        async with httpx.AsyncClient(timeout=60) as client:
            while time.monotonic() < until:
                stream, query = rng.random() < 0.5, "Which city is it" + "?" * rng.randint(1, 8)
                body = {"query": query, "stream": stream}
                if rng.random() < 0.5:
                    path, body = (
                        "/v1/chat/completions",
                        {
                            "model": "tiny",
                            "messages": [{"role": "user", "content": query}],
                            "stream": stream,
                        },
                    )
                else:
                    path = "/think"
                work = client.post(url + path, json=body)
                try:
                    patience = rng.uniform(0, 0.03) if rng.random() < 0.34 else 60
                    answer = await asyncio.wait_for(work, patience)
                except (TimeoutError, httpx.TransportError):
                    found["left"] += 1
                    continue
                whole = answer.status_code == 200 and (
                    "event: answer" in answer.text or "[DONE]" in answer.text or not stream
                )
                found["whole" if whole else "busy" if answer.status_code == 429 else "other"] += 1
                if whole and not stream:
                    json.loads(answer.text)

    await asyncio.gather(*(one(number) for number in range(clients)))
    return found


def test_a_stop_signal_is_heeded(tmp_path: Path) -> None:
    made = house(tmp_path)
    server = Server(made.app, made.service)
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
    assert made.service.draining.is_set()
    assert not made.service.stopping.is_set()
    server.handle_exit(signal.SIGINT, None)
    assert made.service.stopping.is_set()
