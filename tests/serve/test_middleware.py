from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from aegis.serve.tokens import new_token
from tests.serve.fakes import House, house
from tests.serve.live import connected, living


def test_a_page_elsewhere_cannot_use_an_open_door(plain: House) -> None:
    with plain.client() as client:
        simple = client.post(
            "/think", content=b'{"query": "hi"}', headers={"Content-Type": "text/plain"}
        )
        rebound = client.post("/think", json={"query": "hi"}, headers={"Host": "evil.example"})
        preflight = client.options(
            "/think",
            headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
        )
        crossed = client.post(
            "/think", json={"query": "hi"}, headers={"Origin": "http://evil.example"}
        )
    assert [simple.status_code, rebound.status_code, preflight.status_code] == [400, 421, 405]
    for answer in (simple, rebound, preflight, crossed):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_token_has_so_many_requests_a_minute(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    first, second = (new_token(file, name, ["ask"]) for name in ("first", "second"))
    made = house(tmp_path, tokens=file, rate=3)
    with made.client() as client:

        def ask(token: str) -> Any:
            return client.post(
                "/think", json={"query": "hi"}, headers={"Authorization": f"Bearer {token}"}
            )

        assert [ask(first).status_code for _ in range(4)] == [200, 200, 200, 429]
        assert 1 <= int(ask(first).headers["Retry-After"]) <= 20
        assert ask(second).status_code == 200


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


def test_a_body_that_never_ends_is_given_up(tmp_path: Path) -> None:
    made = house(tmp_path, body_s=0.3)
    with (
        living(made) as (url, _),
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as raw,
    ):
        raw.sendall(
            b"POST /think HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Content-Length: 99\r\n\r\n{"qu'
        )
        assert b" 408 " in raw.recv(4096)


@pytest.mark.parametrize(
    "host", ["localhost", "evil.example"], ids=["let in", "turned away for another reason"]
)
@pytest.mark.parametrize("order", [1, -1])
def test_a_request_of_two_lengths_hides_no_other(tmp_path: Path, host: str, order: int) -> None:
    lengths = ["Content-Length: 6\r\n", "Transfer-Encoding: chunked\r\n"][::order]
    head = f"POST /think HTTP/1.1\r\nHost: {host}\r\n{''.join(lengths)}\r\n"
    hidden = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with living(house(tmp_path)) as (url, _), connected(url) as raw:
        raw.settimeout(5)
        raw.sendall(f"{head}0\r\n\r\n{hidden}".encode())
        answered = b"".join(iter(lambda: raw.recv(4096), b""))  # until the server closes
    assert answered.startswith(b"HTTP/1.1 400 ")
    assert answered.count(b"HTTP/1.1") == 1
    assert b"two_lengths" in answered


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
