"""What stands before the application: who may come in, how often, with how much, and under which
number."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aegis.errors import AegisError
from aegis.serve.metrics import Metrics
from aegis.serve.responses import error_body
from aegis.serve.service import tell
from aegis.serve.tokens import SCOPES, TokenFile

_log = logging.getLogger("aegis.serve")
_OPEN = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Caller:
    """Who came in. Without tokens everybody on this machine is the same nameless caller, who may do
    everything."""

    id: str
    name: str
    scopes: tuple[str, ...]


@dataclass(frozen=True)
class Rejection:
    """A request that is turned away."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()


class AccessMiddleware:
    """An ASGI application around another.

    Args:
        tokens: None leaves the door open, for callers that reach this machine under its loopback
            names.
        body_bytes: the largest body.
        body_s: the longest that a body may take to arrive.
        rate_per_minute: requests a token may make; 0 for any number.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: TokenFile | None,
        metrics: Metrics,
        body_bytes: int = 1 << 18,
        body_s: float = 10,
        rate_per_minute: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app, self.tokens, self.metrics = app, tokens, metrics
        self.body_bytes, self.body_s, self.rate, self.clock = (
            body_bytes,
            body_s,
            rate_per_minute,
            clock,
        )
        self._left: dict[str, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1000})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, status, id = self.clock(), 0, uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = id

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            turned = self._come_in(scope)
            if turned is None:
                body = await self._body(scope, receive)
                if not isinstance(body, Rejection):
                    return await self.app(scope, _replayed(body, receive), marked)
                turned = body
            await _turn_away(turned, marked)
        except ClientDisconnect:
            status = status or 499
        except (
            Exception
        ) as error:  # the application has answered with its own 500, or could not any more
            tell(error)
            if not status:
                await _turn_away(
                    Rejection(500, "internal_error", "something went wrong here; it was logged"),
                    marked,
                )
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = self.clock() - begun
            self.metrics.request(route, status, seconds)
            _log.info("%s %s %d %.0f ms %s", _method(scope), route, status, 1000 * seconds, id)

    def _come_in(self, scope: Scope) -> Rejection | None:
        headers = Headers(scope=scope)
        scope["state"]["caller"] = Caller("", "", SCOPES)
        if self.tokens is None:
            host = headers.get("host", "").lower()
            name = host if host.endswith("]") else host.rsplit(":", 1)[0]
            if not is_loopback(
                name.strip("[]")
            ):  # a page elsewhere that had its own name lead here
                return Rejection(
                    421,
                    "wrong_host",
                    "this server answers to its loopback names only; start it with --tokens",
                )
            return None
        if scope["path"] in _OPEN:
            return None
        scheme, _, presented = headers.get("authorization", "").partition(" ")
        try:
            token = self.tokens.find(presented.strip()) if scheme.lower() == "bearer" else None
        except AegisError as error:
            tell(error)
            return Rejection(
                503,
                "no_tokens",
                "tokens cannot be checked now, so nobody may come in; try again later",
            )
        if token is None:
            challenge = (("WWW-Authenticate", "Bearer"),)
            return Rejection(
                401, "invalid_token", "a valid token is needed: Authorization: Bearer …", challenge
            )
        scope["state"]["caller"] = Caller(token.id, token.name, token.scopes)
        wait_s = self._wait(token.id)
        if wait_s > 0:
            return Rejection(
                429,
                "rate_limit_exceeded",
                "too many requests with this token; wait",
                (_retry_after(wait_s),),
            )
        return None

    def _wait(self, token_id: str) -> float:
        """Seconds until the token may be used again; a full minute's requests may come at once."""
        if not self.rate:
            return 0
        now = self.clock()
        left, since = self._left.get(token_id, (float(self.rate), now))
        left = min(self.rate, left + (now - since) * self.rate / 60)
        self._left[token_id] = (left - 1 if left >= 1 else left, now)
        return 0 if left >= 1 else (1 - left) * 60 / self.rate

    async def _body(self, scope: Scope, receive: Receive) -> bytes | Rejection:
        too_large = Rejection(
            413,
            "too_large",
            f"the body may have {self.body_bytes} bytes; send less",
            (("Connection", "close"),),
        )
        stated = Headers(scope=scope).get("content-length", "0")
        if not stated.isdecimal() or len(stated) > 15:
            return Rejection(400, "bad_length", "Content-Length is no number")
        if int(stated) > self.body_bytes:
            return too_large
        found = bytearray()
        try:
            async with asyncio.timeout(self.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    found += message.get("body", b"")
                    if len(found) > self.body_bytes:
                        return too_large
                    if not message.get("more_body"):
                        return bytes(found)
        except TimeoutError:
            return Rejection(
                408,
                "too_slow",
                f"the body must arrive within {self.body_s:g} s",
                (("Connection", "close"),),
            )


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _turn_away(turned: Rejection, send: Send) -> None:
    body = error_body(turned.message, code=turned.code, type=error_type(turned.status))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in turned.headers]
    with contextlib.suppress(OSError):
        await send({"type": "http.response.start", "status": turned.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """True if only this machine can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def error_type(status: int) -> str:
    """OpenAI's word for a kind of error."""
    known = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
    return known.get(status, "server_error" if status >= 500 else "invalid_request_error")


def _retry_after(seconds: float) -> tuple[str, str]:
    return ("Retry-After", str(max(1, math.ceil(seconds))))


def _method(scope: Scope) -> str:
    return (
        scope["method"]
        if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")
        else "?"
    )
