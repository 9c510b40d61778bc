from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from aegis.engine import text_server
from aegis.engine.text_server import ServerKind, TextServer
from aegis.errors import ModelError


class Replies(BaseHTTPRequestHandler):
    """Speaks both APIs: answers with the last word of the prompt, or with what `garbage` says."""

    garbage: bytes | None = None
    status, wait_s = 200, 0.0
    missing, dripping_s = 0, 0.0
    asked: list[tuple[str, dict[str, Any]]]

    def do_GET(self) -> None:
        tags = {"models": [{"name": "tiny:latest", "digest": "d1"}]}
        self._reply(tags if self.path == "/api/tags" else {"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        prompt = body.get("prompt") or body["messages"][0]["content"]
        text = f"{prompt.split()[-1]} STOP more"
        message = {"content": text}
        forms = {
            "/api/generate": {"response": text},
            "/api/chat": {"message": message},
            "/completions": {"choices": [{"text": text}]},
            "/chat/completions": {"choices": [{"message": message}]},
        }
        self._reply(forms[self.path])

    def _reply(self, value: Any) -> None:
        time.sleep(self.wait_s)
        data = json.dumps(value).encode() if self.garbage is None else self.garbage
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(data) + self.missing))
        self.end_headers()
        with contextlib.suppress(OSError):  # nobody waits any more
            for begin in range(len(data)) if self.dripping_s else ():
                self.wfile.write(data[begin : begin + 1])
                time.sleep(self.dripping_s)
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(**changes: Any) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    handler = type("Changed", (Replies,), {"asked": [], **changes})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler.asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("kind", ["ollama", "openai"])
@pytest.mark.parametrize("chat", [True, False])
def test_text_ends_before_a_stop(kind: ServerKind, chat: bool) -> None:
    with serving() as (url, asked):
        server = TextServer(kind, url, "tiny")
        assert server.write("say yes", ["STOP"], 9, chat=chat) == "yes "
        assert len(server.content()) == 64
        assert server.content() == server.content()
    _, body = asked[0]
    assert body["model"] == "tiny"
    assert body.get("temperature", body.get("options", {}).get("temperature")) == 0
    assert ("messages" in body) == chat


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"garbage": b"<html>"}, "no usable answer"),
        ({"garbage": b"[1, 2]"}, "holds no text"),
        ({"garbage": b'{"response": null}'}, "holds no text"),
        ({"status": 500, "garbage": b"out of\nmemory"}, "status 500: out of memory"),
        ({"wait_s": 1.0}, "no answer in 0 s|timed out"),
        ({"garbage": b" " * 40, "dripping_s": 0.1}, "no answer in 0 s"),
        ({"garbage": b"[" * 100_000}, "no usable answer"),
        ({"garbage": b'{"respon', "missing": 90}, "no usable answer"),
        ({"protocol_version": "BANANA"}, "no usable answer"),
    ],
)
def test_a_server_that_gives_no_answer_is_told_in_one_line(
    changes: dict[str, Any], message: str
) -> None:
    with serving(**changes) as (url, _):
        with pytest.raises(ModelError, match=message) as raised:
            TextServer("ollama", url, "tiny", timeout_s=0.3).write("a", [], 5, chat=False)
        assert "\n" not in str(raised.value)


def test_half_a_character_is_no_text_that_cannot_be_kept() -> None:
    with serving(garbage=b'{"response": "a\\ud800b"}') as (url, _):
        assert TextServer("ollama", url, "tiny").write("a", [], 5, chat=False) == "a?b"


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_server, "_MOST_BYTES", 1 << 20)
    with serving(garbage=b" " * (2 << 20)) as (url, _), pytest.raises(ModelError, match="1 MiB"):
        TextServer("ollama", url, "tiny").write("a", [], 5, chat=False)


def test_a_server_that_is_down_or_has_another_model_is_told() -> None:
    with serving() as (url, _), pytest.raises(ModelError, match="its models are tiny:latest"):
        TextServer("ollama", url, "big").content()
    with pytest.raises(ModelError, match="start the server"):
        TextServer("openai", url, "tiny", timeout_s=1).content()
    with serving(garbage=b"{}") as (url, _), pytest.raises(ModelError, match="no list of models"):
        TextServer("openai", url, "tiny").content()
