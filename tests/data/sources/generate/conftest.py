from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.data.sources.generate.stand_in import good_answer

Reply = tuple[int, dict[str, str], bytes]


def completion(text: str, reason: str = "stop") -> Reply:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    usage = {"prompt_tokens": 100, "completion_tokens": 50}
    body = {"choices": [choice], "usage": usage, "model": "m-1-2026"}
    return 200, {}, json.dumps(body).encode()


class ChatServer:
    """A server of chat completions; `reply` makes its answers, `bodies` has what it was sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.reply: Callable[[dict[str, Any]], Reply | None] = lambda body: completion(
            json.dumps(good_answer(body["messages"][0]["content"]), ensure_ascii=False)
        )
        self.models: Reply = (200, {}, b"{}")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.answer(outer.models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.bodies.append(body)
                outer.keys.append(self.headers.get("authorization", ""))
                reply = outer.reply(body)
                if reply is None:  # breaks the connection in the middle
                    self.send_response(200)
                    self.send_header("content-length", "100")
                    self.end_headers()
                    self.wfile.write(b'{"choi')
                    self.close_connection = True
                    return
                self.answer(reply)

            def answer(self, reply: Reply) -> None:
                status, headers, data = reply
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    chat = ChatServer()
    thread = threading.Thread(target=lambda: chat.server.serve_forever(0.02), daemon=True)
    thread.start()
    yield chat
    chat.server.shutdown()
    chat.server.server_close()


class Clock:
    """Time that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        time.sleep(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()
