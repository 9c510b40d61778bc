"""Where a request's body ends: said in one way, or not at all."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from aegis.serve.errors import Rejection


class FramingMiddleware:
    """Turn away a request with two lengths: what a proxy takes for its body may be another request.

    Source:
        RFC 9112, section 6.3.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        if "transfer-encoding" in headers and "content-length" in headers:
            message = "Content-Length and Transfer-Encoding contradict one another; send one"
            raise Rejection(400, "two_lengths", message, headers={"Connection": "close"})
        await self.app(scope, receive, send)
