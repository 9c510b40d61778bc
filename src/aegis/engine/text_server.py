"""A model behind HTTP that writes text and no more: Ollama, or any server of OpenAI's API."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aegis.engine.scoring import cut
from aegis.errors import ModelError
from aegis.storage.files import fingerprint

ServerKind = Literal["ollama", "openai"]
_API_KEY = "OPENAI_API_KEY"
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class TextServer:
    """Asks for the most probable text, one request after the other.

    Args:
        url: of the server; OpenAI's ends in /v1.
        name: of the model there.
        timeout_s: how long one answer may take.
    """

    kind: ServerKind
    url: str
    name: str
    timeout_s: float = 300.0

    def content(self) -> str:
        """Return a digest of what the server says about the model: of its files, if it is Ollama.

        Raises:
            ModelError: if it does not answer, or has no such model.
        """
        if self.kind == "ollama":
            known = {row["name"]: row for row in self._list("/api/tags", "models", "name")}
            wanted = self.name if ":" in self.name else f"{self.name}:latest"
        else:
            known = {row["id"]: row for row in self._list("/models", "data", "id")}
            wanted = self.name
        if wanted not in known:
            names = ", ".join(sorted(known)[:5]) or "none"
            raise ModelError(f"{self.url}: has no model {wanted!r}; its models are {names}")
        if self.kind == "ollama" and known[wanted].get("digest"):
            return fingerprint(known[wanted]["digest"])
        return fingerprint(self.url, wanted, known[wanted])

    def write(self, prompt: str, stops: Sequence[str], most: int, *, chat: bool) -> str:
        """Return what the model writes behind the prompt, or, in a chat, as the answer to it.

        Raises:
            ModelError: if the server gives no usable answer.
        """
        stop = [text for text in stops if text][:4]  # more are refused by OpenAI's API
        messages = [{"role": "user", "content": prompt}]
        if self.kind == "ollama":
            options = {"temperature": 0, "seed": 0, "num_predict": most, "stop": stop}
            body = {"model": self.name, "stream": False, "options": options}
            if chat:
                reply = self._ask("/api/chat", {**body, "messages": messages})
                text = _at(reply, "message", "content")
            else:
                reply = self._ask("/api/generate", {**body, "prompt": prompt, "raw": True})
                text = _at(reply, "response")
        else:
            body = {"model": self.name, "temperature": 0, "max_tokens": most, "seed": 0}
            body |= {"stop": stop} if stop else {}
            if chat:
                reply = self._ask("/chat/completions", {**body, "messages": messages})
                text = _at(reply, "choices", 0, "message", "content")
            else:
                reply = self._ask("/completions", {**body, "prompt": prompt})
                text = _at(reply, "choices", 0, "text")
        if not isinstance(text, str):
            shown = json.dumps(reply, ensure_ascii=False)[:100]
            raise ModelError(f"{self.url}: its answer holds no text ({shown}); check the server")
        text = text.encode("utf-8", "replace").decode()  # JSON can hold half of a character
        return cut(text, stops)

    def _list(self, path: str, key: str, name: str) -> list[dict[str, Any]]:
        rows = _at(self._ask(path), key)
        if not isinstance(rows, list) or not all(isinstance(_at(row, name), str) for row in rows):
            raise ModelError(f"{self.url}: {path} gives no list of models; check the address")
        return rows

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.kind == "openai" and os.environ.get(_API_KEY):
            headers["Authorization"] = f"Bearer {os.environ[_API_KEY]}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                return json.loads(self._body(reply))
        except urllib.error.HTTPError as error:
            said = error.read(200).decode("utf-8", "replace").strip().replace("\n", " ")
            reason, remedy = f"status {error.code}: {said}", "see the server's log"
        except TimeoutError:
            reason, remedy = f"no answer in {self.timeout_s:.0f} s", "give a longer --timeout"
        except urllib.error.URLError as error:
            slow = isinstance(error.reason, TimeoutError)
            reason, remedy = str(error.reason), "start the server, or correct its address"
            remedy = "give a longer --timeout" if slow else remedy
        except (ValueError, OSError, RecursionError, http.client.HTTPException) as error:
            # no JSON or one nested without end, no HTTP, a cut connection
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            remedy = "check what answers there"
        raise ModelError(f"{self.url}{path}: no usable answer ({reason}); {remedy}")

    def _body(self, reply: Any) -> bytes:
        """Read an answer; the time is for all of it, not, as the socket's, for each part."""
        data, latest = bytearray(), time.monotonic() + self.timeout_s
        while part := reply.read1(1 << 16):
            data += part
            if time.monotonic() > latest:
                raise TimeoutError
            if len(data) > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES >> 20} MiB")
        return bytes(data)


def _at(value: Any, *keys: str | int) -> Any:
    """Return what stands there; None where the answer is of another form."""
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value
