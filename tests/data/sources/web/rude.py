"""A server that does everything wrong, on an address that only the tests' fetcher may reach."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

from aegis.data.sources.web.addresses import refusal
from aegis.data.sources.web.fetch import CheckedBackend, Fetcher

OPEN = "127.0.0.77"
"""The one loopback address that tests open; all others stay refused."""
Answer = bytes | Callable[[socket.socket], None]


def answer(body: bytes | str = b"", status: int = 200, **headers: str) -> bytes:
    """Return a whole response; `content_type` becomes Content-Type."""
    data = body.encode() if isinstance(body, str) else body
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    fields = {"Content-Type": "text/plain", "Content-Length": str(len(data)), **named}
    if not fields["Content-Type"]:
        del fields["Content-Type"]
    lines = [
        f"HTTP/1.1 {status} x",
        "Connection: close",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + data


def page(body: str, **headers: str) -> bytes:
    fields = {**HTML_FIELD, **headers}
    return answer(f"<!doctype html><title>T</title><main>{body}</main>", 200, **fields)


HTML_FIELD = {"content_type": "text/html; charset=utf-8"}


class RudeServer:
    """Answers by host and path, or by path; 404 for what it does not know."""

    def __init__(self, address: str = OPEN, context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        self._context = context
        self._socket = socket.create_server((address, 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def url(self, path: str = "/", host: str = "site.test", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(20)
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            data = b""
            while b"\r\n\r\n" not in data:
                part = connection.recv(65536)
                if not part:
                    return
                data += part
            first, *lines = data.decode("latin-1").split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines if ": " in line)
            headers = {name.lower(): value for name, value in headers.items()}
            path, host = first.split(" ")[1], headers.get("host", "").rpartition(":")[0]
            self.asked.append(f"{host}{path}")
            self.headers.append(headers)
            reply = self.answers.get(f"{host}{path}", self.answers.get(path, answer(status=404)))
            if callable(reply):
                reply(connection)
            else:
                connection.sendall(reply)
            with contextlib.suppress(OSError):
                connection.close()


def opened(address: str) -> str | None:
    """Be the rule of addresses that opens one of loopback's for the tests."""
    return None if address == OPEN else refusal(address)


def to_server(host: str, port: int) -> list[str]:
    """Be the resolver to which every name is the server's, and an address is itself."""
    return [host] if host.replace(".", "").isdigit() else [OPEN]


def make_fetcher(**settings: Any) -> Fetcher:
    backend = CheckedBackend(resolve=settings.pop("resolve", to_server), refuse=opened)
    settings = {"contact": "crawl@somewhere.jp", "sleep": lambda _: None, **settings}
    return Fetcher(backend=backend, **settings)


@contextlib.contextmanager
def rude_server(address: str = OPEN, context: ssl.SSLContext | None = None) -> Iterator[RudeServer]:
    server = RudeServer(address, context)
    try:
        yield server
    finally:
        server.close()
