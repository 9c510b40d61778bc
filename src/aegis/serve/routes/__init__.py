"""What every route needs: the server's parts, and a caller with the right scope."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from aegis.errors import DataError
from aegis.inputs.strict_json import parse_object
from aegis.serve.admission import RequestQueue
from aegis.serve.errors import Rejection
from aegis.serve.escalations import CaseQueue
from aegis.serve.metrics import ServerMetrics
from aegis.serve.middleware import Caller
from aegis.serve.schemas import ErrorBody
from aegis.serve.service import AnswerService
from aegis.serve.settings import ServeSettings
from aegis.serve.tokens import Scope


@dataclass(frozen=True)
class ServerParts:
    """What the routes work with; `started` is the Unix time of the server's start."""

    service: AnswerService
    queue: RequestQueue
    cases: CaseQueue
    metrics: ServerMetrics
    settings: ServeSettings
    started: int


class StrictRoute(APIRoute):
    """A route whose JSON body gives no key twice and holds no number that is not finite."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        try:
            return parse_object((await self.body()).decode(), "body")
        except (DataError, UnicodeDecodeError):
            message = "the body must be one JSON object that gives no key twice, of finite numbers"
            raise Rejection(400, "invalid_json", message) from None


def _parts(request: Request) -> ServerParts:
    return request.app.state.parts


def _requires(*scopes: Scope) -> Any:
    """Return a dependency on a caller who has one of the scopes."""

    def caller(request: Request) -> Caller:
        found: Caller = request.state.caller
        if not set(scopes) & set(found.scopes):
            message = f"this needs a token with the scope {' or '.join(scopes)}"
            raise Rejection(403, "missing_scope", message)
        return found

    return Depends(caller)


Parts = Annotated[ServerParts, Depends(_parts)]
Asker = Annotated[Caller, _requires("ask")]
Reviewer = Annotated[Caller, _requires("review")]
AskerOrReviewer = Annotated[Caller, _requires("ask", "review")]
Admin = Annotated[Caller, _requires("admin")]


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI document says of a route's errors, `codes` beside the usual ones."""
    usual = (400, 401, 403, 408, 413, 421, 429, 500, 503)
    return {code: {"model": ErrorBody} for code in (*usual, *codes)}
