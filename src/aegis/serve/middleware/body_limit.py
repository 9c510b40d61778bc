"""How large a body may be, and how long it may take to arrive."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aegis.serve.errors import Rejection

_CLOSE = {"Connection": "close"}


class BodyLimitMiddleware:
    """Read the whole body before the application sees it; reject one too large or too slow."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self.app, self.max_bytes, self.timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = _Replay(await self._read(scope, receive), receive)
        await self.app(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or len(length) > 15:
            raise Rejection(400, "bad_length", "Content-Length is no number")
        self._require_size(int(length))
        body = bytearray()
        try:
            async with asyncio.timeout(self.timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    self._require_size(len(body))
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            slow = f"the body must arrive within {self.timeout_s:g} s"
            raise Rejection(408, "too_slow", slow, headers=_CLOSE) from None

    def _require_size(self, size: int) -> None:
        if size > self.max_bytes:
            large = f"the body may have {self.max_bytes} bytes; send less"
            raise Rejection(413, "too_large", large, headers=_CLOSE)


class _Replay:
    """Receive a body that was read before, then whatever else comes."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Message:
        if self.body is None:
            return await self.receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}
