"""What every request has: an id, a line in the log, its metrics, and an answer even where something
fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aegis.serve.errors import Rejection, to_rejection
from aegis.serve.logs import log
from aegis.serve.metrics import ServerMetrics

_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}


class RequestLogMiddleware:
    """Give each request an id of ours, log it, and answer what no other layer has answered."""

    def __init__(
        self, app: ASGIApp, *, metrics: ServerMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.app, self.metrics, self.clock = app, metrics, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1000})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status, id = self.clock(), 0, uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = id

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        # What answers GET answers HEAD; the server below leaves the body out.
        routed = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            _require_one_length(Headers(scope=scope))
            await self.app(routed, receive, send_with_headers)
        except ClientDisconnect:
            status = status or 499
        except (Exception, asyncio.CancelledError) as error:
            if not status:  # else it has been answered, and logged, already
                rejection = to_rejection(error)
                with contextlib.suppress(OSError):
                    await rejection.response()(scope, receive, send_with_headers)
        finally:
            route = getattr(routed.get("route"), "path", "other")
            seconds = self.clock() - started
            self.metrics.request(route, status, seconds)
            method = scope["method"] if scope["method"] in _METHODS else "?"
            log.info("%s %s %d %.0f ms %s", method, route, status, 1000 * seconds, id)


def _require_one_length(headers: Headers) -> None:
    """Turn away a body with two ends, which may hide another request (RFC 9112, section 6.3)."""
    if "transfer-encoding" in headers and "content-length" in headers:
        message = "Content-Length and Transfer-Encoding contradict one another; send one"
        raise Rejection(400, "two_lengths", message, headers={"Connection": "close"})
