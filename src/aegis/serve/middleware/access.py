"""Who may come in, and how often."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from aegis.errors import AegisError
from aegis.serve.errors import Rejection
from aegis.serve.logs import log_exception
from aegis.serve.tokens import SCOPES, Token, TokenFile

_OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/docs", "/openapi.json"})


@dataclass(frozen=True)
class Caller:
    """Who asks. Without tokens everybody on this machine is the same nameless caller, who may do
    everything."""

    id: str = ""
    name: str = ""
    scopes: tuple[str, ...] = SCOPES


@dataclass
class RateLimiter:
    """A token bucket a caller: a full minute's requests may come at once; 0 is no limit."""

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def wait_s(self, caller: str) -> float:
        """Take one request from the caller's bucket, or return the seconds until there is one."""
        if not self.per_minute:
            return 0
        now = self.clock()
        available, since = self._buckets.get(caller, (float(self.per_minute), now))
        available = min(self.per_minute, available + (now - since) * self.per_minute / 60)
        admitted = available >= 1
        self._buckets[caller] = (available - 1 if admitted else available, now)
        return 0 if admitted else (1 - available) * 60 / self.per_minute


class AccessMiddleware:
    """Let in callers with a valid token or, without tokens, those who reach this machine under its
    loopback names."""

    def __init__(
        self, app: ASGIApp, *, tokens: TokenFile | None, rate_limiter: RateLimiter
    ) -> None:
        self.app, self.tokens, self.rate_limiter = app, tokens, rate_limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["state"]["caller"] = self._caller(scope["path"], Headers(scope=scope))
        await self.app(scope, receive, send)

    def _caller(self, path: str, headers: Headers) -> Caller:
        if self.tokens is None:
            _require_loopback(headers.get("host", ""))
            return Caller()
        if path in _OPEN_PATHS:
            return Caller()
        token = _presented_token(self.tokens, headers.get("authorization", ""))
        wait_s = self.rate_limiter.wait_s(token.id)
        if wait_s > 0:
            retry = {"Retry-After": str(math.ceil(wait_s))}
            message = "too many requests with this token; wait"
            raise Rejection(429, "rate_limit_exceeded", message, headers=retry)
        return Caller(token.id, token.name, token.scopes)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _require_loopback(host: str) -> None:
    """Turn away a web page elsewhere that had its own name lead to this machine."""
    name = host.lower() if host.endswith("]") else host.lower().rsplit(":", 1)[0]
    if not is_loopback(name.strip("[]")):
        message = "this server answers to its loopback names only; start it with --tokens"
        raise Rejection(421, "wrong_host", message)


def _presented_token(tokens: TokenFile, authorization: str) -> Token:
    scheme, _, presented = authorization.partition(" ")
    try:
        token = tokens.find(presented.strip()) if scheme.lower() == "bearer" else None
    except AegisError as error:
        log_exception(error)
        message = "tokens cannot be checked now, so nobody may come in; try again later"
        raise Rejection(503, "no_tokens", message) from None
    if token is None:
        message = "a valid token is needed: Authorization: Bearer …"
        raise Rejection(401, "invalid_token", message, headers={"WWW-Authenticate": "Bearer"})
    return token
