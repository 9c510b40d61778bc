"""A server in a thread, clients that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx

from aegis.serve.server import Server, bind
from tests.serve.fakes import House


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
