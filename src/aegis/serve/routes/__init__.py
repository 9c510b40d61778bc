"""What every route needs: the server's parts, and a caller with the right scope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

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
