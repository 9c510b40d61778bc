"""Errors in the one form that clients see: with a remedy, and never a word of what was sent."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from aegis.errors import AegisError, DiskFullError
from aegis.serve.admission import ClientDisconnected, QueueFullError
from aegis.serve.escalations import NoCaseError, QueueBusyError, QueueGoneError, ResolvedError
from aegis.serve.logs import log_exception
from aegis.serve.schemas import UNSUPPORTED, ErrorBody, ErrorDetail, field_path
from aegis.serve.service import AbandonedError, NoAnswerError, PromptTooLongError, UnavailableError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_HTTP_ERRORS = {
    400: ("bad_request", "the body cannot be read; send JSON in UTF-8"),
    404: ("not_found", "there is no such path; GET /openapi.json names them"),
    405: ("method_not_allowed", "this path does not take that method; the header Allow names them"),
}
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class Rejection(HTTPException):
    """A request turned away, in OpenAI's error form."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    def body(self) -> bytes:
        status = self.status_code
        type = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        detail = ErrorDetail(message=self.detail, type=type, code=self.code, param=self.param)
        return ErrorBody(error=detail).model_dump_json().encode()

    def response(self) -> Response:
        return Response(self.body(), self.status_code, self.headers, media_type="application/json")


async def _answer_error(_: Request, error: Exception) -> Response:
    return to_rejection(error).response()


HANDLERS: dict[int | type[Exception], Any] = dict.fromkeys(
    (HTTPException, RequestValidationError, AegisError, Exception), _answer_error
)
"""For `FastAPI(exception_handlers=)`: every error has the one form."""


def to_rejection(error: BaseException) -> Rejection:
    """Return what the client is told of an error; log the unexpected ones."""
    match error:
        case Rejection():
            return error
        case RequestValidationError():
            return _invalid(error)
        case HTTPException(status_code=status):
            code, message = _HTTP_ERRORS.get(status, _HTTP_ERRORS[400])
            return Rejection(status, code, message, headers=dict(error.headers or {}))
        case PromptTooLongError():
            return Rejection(400, "context_length_exceeded", str(error), param="messages")
        case NoAnswerError(outcome="out of time"):
            # OpenAI's clients would ask twice more by themselves.
            again = {"x-should-retry": "false"}
            return Rejection(504, "out_of_time", str(error), headers=again)
        case NoAnswerError():
            return Rejection(503, "engine_error", str(error), headers={"Retry-After": "5"})
        case UnavailableError():
            return Rejection(503, "unavailable", str(error), headers={"Retry-After": "5"})
        case QueueFullError():
            return Rejection(429, "too_busy", str(error), headers={"Retry-After": "2"})
        case ClientDisconnected():
            return Rejection(499, "client_left", "the client has left")
        case AbandonedError() | asyncio.CancelledError():
            message = "the server is going down; ask again in a moment"
            return Rejection(503, "stopping", message, headers={"Retry-After": "10"})
        case DiskFullError():
            log_exception(error)
            message = "the disk here is full, so nothing was changed; ask again once there is room"
            return Rejection(507, "disk_full", message, headers={"Retry-After": "60"})
        case QueueBusyError():
            message = "the queue is being written; ask again in a moment"
            return Rejection(503, "unavailable", message, headers={"Retry-After": "5"})
        case QueueGoneError():
            log_exception(error)
            message = "the queue is not where it was, so nothing was changed; tell who runs this"
            return Rejection(503, "unavailable", message, headers={"Retry-After": "60"})
        case NoCaseError():
            return Rejection(404, "no_such_case", "there is no such case")
        case ResolvedError():
            message = "the case has its answer already; that one stands"
            return Rejection(409, "already_resolved", message)
    log_exception(error)
    return Rejection(500, "internal_error", "something went wrong here; it was logged")


def _invalid(error: RequestValidationError) -> Rejection:
    # Of a value that may have several forms the error that came farthest says most.
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    location, kind = list(first["loc"]), first["type"]
    path = location[1:] if location[:1] in (["body"], ["query"], ["path"]) else location
    field, last = field_path(path), path[-1] if path else None
    code, message, param = "invalid_value", "", field
    if UNSUPPORTED.intersection(step for step in path if isinstance(step, str)):
        code = "unsupported"
        message = f"{field} asks for what this server does not do; leave it out"
    elif kind in ("none_required", "extra_forbidden"):
        code, name = "unknown_field", str(last)
        param = name if _FIELD_NAME.fullmatch(name) else None
        where = f"{field}: " if field else ""
        message = f"{where}{param or 'a field'} is not known here; leave it out"
    elif kind == "missing" and not path:
        code = "no_body"
        message = "a JSON body is needed, with Content-Type: application/json"
    elif kind == "model_attributes_type":
        message = "the body must be a JSON object, with Content-Type: application/json"
        param = None
    elif kind == "string_too_long" and location[:1] == ["body"]:
        message = f"{field} may have {first['ctx']['max_length']} characters; send less"
        return Rejection(413, "too_large", message, param=field)
    elif kind in ("string_pattern_mismatch", "string_too_short"):
        message = f"{field} is empty or not of its form"
    else:
        message = f"{field or 'body'}: {first['msg'].removeprefix('Value error, ')}"
    return Rejection(400, code, message, param=param)
