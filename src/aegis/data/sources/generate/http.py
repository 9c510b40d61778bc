"""Any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

from aegis.data.sources.generate.backend import (
    AccessError,
    CallError,
    CallUsage,
    RawAnswer,
    Request,
    told_count,
)
from aegis.data.sources.retry_after import retry_after
from aegis.errors import BadInputError, MissingPackageError
from aegis.storage.files import fingerprint

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_NO_ACCESS = {401, 403}
_OPTIONAL = ("response_format", "max_completion_tokens")
_CHECK_S = 15.0
_MOST_BYTES = 8 << 20


class HttpBackend:
    """A chat completions endpoint.

    Args:
        url: up to and without `/chat/completions`.
        key_env: the environment variable that holds the key; none is sent if it is not set.
        most_tokens: that an answer may have.
    """

    name, batch = "openai", 1

    def __init__(
        self,
        *,
        url: str,
        model: str | None,
        key_env: str,
        timeout_s: float = 300,
        most_tokens: int = 4096,
    ) -> None:
        if not model:
            raise BadInputError("--model is needed with --backend openai; name the server's model")
        try:
            import httpx
        except ImportError as error:
            remedy = "pip install 'aegis-so8t[data]'"
            raise MissingPackageError(f"--backend openai needs httpx; {remedy}") from error
        try:
            address = httpx.URL(url)
            if address.scheme not in ("http", "https") or not address.host:
                raise ValueError("must begin with http:// or https:// and a host")
            if address.userinfo or address.query or address.fragment:
                raise ValueError("must hold no password and no ?query: a key belongs in --key-env")
        except (httpx.InvalidURL, ValueError, TypeError) as error:
            shown = repr(url[:200]) if "@" not in url and "?" not in url else "(not shown)"
            raise BadInputError(f"--url {shown} is no address: {error}; correct it") from None
        self.model: str | None = model
        self.url, self.most_tokens = url.rstrip("/"), most_tokens
        self.key_env, self.key = key_env, os.environ.get(key_env, "")
        key = self.key
        if not key.isascii() or any(character.isspace() for character in key):
            raise BadInputError(f"{key_env} holds no key: white space or non-ASCII; set it anew")
        self.identity = fingerprint(self.url, model)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.sent: dict[str, Any] = {"headers": headers, "timeout": timeout_s}
        self.timeout_s = timeout_s
        self.refused = set[str]()  # fields that this server does not take

    def check(self) -> None:
        import httpx

        try:
            reply = httpx.get(f"{self.url}/models", **{**self.sent, "timeout": _CHECK_S})
        except httpx.HTTPError as error:
            raise BadInputError(
                f"--url {self.url}: cannot be reached ({error or type(error).__name__}); "
                "start the server or correct the address"
            ) from error
        if reply.status_code in _NO_ACCESS:
            raise BadInputError(
                f"--url {self.url}: refuses the key (HTTP {reply.status_code}); "
                f"set {self.key_env} to a good one"
            )

    def ask(self, requests: Sequence[Request]) -> list[RawAnswer]:
        (request,) = requests
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": request.prompt}],
            "max_completion_tokens": self.most_tokens,
        }
        schema = {"name": request.step, "schema": request.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
        body = {name: value for name, value in body.items() if name not in self.refused}
        status, text, headers = self._post(body)
        for name in _OPTIONAL:
            if status == 400 and name in text and name in body:
                self.refused.add(name)  # an older server; the answer is checked anyway
                del body[name]
                status, text, headers = self._post(body)
        if status != 200:
            raise _refusal(status, text, headers)
        return [_read(text)]

    def _post(self, body: dict[str, Any]) -> tuple[int, str, Any]:
        """Return status, text and headers; more than `_MOST_BYTES` are not read."""
        import httpx

        data, deadline = bytearray(), time.monotonic() + self.timeout_s
        try:
            address = f"{self.url}/chat/completions"
            with httpx.stream("POST", address, json=body, **self.sent) as reply:
                for chunk in reply.iter_bytes():
                    data += chunk
                    if len(data) > _MOST_BYTES:
                        problem = f"sent more than {_MOST_BYTES >> 20} MiB"
                        raise CallError(problem, again=False, usage=None)
                    if time.monotonic() > deadline:  # httpx's own limit is for each read
                        raise CallError(f"did not end within {self.timeout_s:.0f} s", usage=None)
            return reply.status_code, self._without_key(data), reply.headers
        except httpx.HTTPError as error:
            reason = f"{type(error).__name__}: {error}".removesuffix(": ")
            usage = CallUsage() if isinstance(error, httpx.ConnectError) else None
            raise CallError(reason, usage=usage, raw=self._without_key(data)) from error

    def _without_key(self, data: bytearray) -> str:
        """Return what the server sent, which may repeat the key that it refuses."""
        text = data.decode("utf-8", "replace")
        return text.replace(self.key, "[SECRET]") if self.key else text


def _refusal(status: int, text: str, headers: Any) -> CallError:
    reason = f"HTTP {status}: {' '.join(text.split())[:300]}"
    if status in _NO_ACCESS:
        return AccessError(reason, raw=text)
    wait_s = retry_after(headers)
    return CallError(reason, again=status in _AGAIN, wait_s=wait_s, raw=text)


def _read(text: str) -> RawAnswer:
    try:
        reply = json.loads(text)
        choice, told = reply["choices"][0], reply.get("usage") or {}
        content, model = choice["message"].get("content") or "", reply.get("model")
        usage = CallUsage(told_count(told, "prompt_tokens"), told_count(told, "completion_tokens"))
        cut = choice.get("finish_reason") == "length"
        if not content.strip():  # the same limit would cut it again, and be paid again
            reason = "used up its tokens before it answered" if cut else "an empty answer"
            raise CallError(reason, again=not cut, usage=usage, raw=text)
        return RawAnswer(content, usage, model if isinstance(model, str) else None, cut)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise CallError("not a chat completion", raw=text[:20_000]) from error
