"""Errors as their asker is told of them: one form, a remedy, and never a word of what was sent."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from aegis.serve import responses, schemas
from aegis.serve.admission import ClientDisconnected, QueueFullError
from aegis.serve.escalations import NoCaseError, ResolvedError
from aegis.serve.middleware import error_type
from aegis.serve.service import AbandonedError, PromptTooLongError, UnavailableError, tell


class Problem(HTTPException):
    """An answer that is an error."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_s: int = 0
    ) -> None:
        headers = {"Retry-After": str(retry_s)} if retry_s else None
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    def body(self) -> bytes:
        return responses.error_body(
            self.detail, code=self.code, type=error_type(self.status_code), param=self.param
        )


def handle_errors(app: FastAPI) -> None:
    """Every error in one form; none repeats what was sent."""

    def answer(found: Problem) -> Response:
        return Response(
            found.body(), found.status_code, found.headers, media_type="application/json"
        )

    @app.exception_handler(HTTPException)
    async def known(_: Request, error: HTTPException) -> Response:
        if isinstance(error, Problem):
            return answer(error)
        texts = {
            404: "there is no such path; GET /openapi.json names them",
            405: "this path does not take that method",
        }
        text = texts.get(error.status_code, "the body cannot be read; send JSON in UTF-8")
        found = Problem(
            error.status_code, "bad_request" if error.status_code == 400 else "not_found", text
        )
        found.headers = error.headers
        return answer(found)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return answer(_explained(error))

    @app.exception_handler(NoCaseError)
    async def no_case(_: Request, error: NoCaseError) -> Response:
        return answer(Problem(404, "no_such_case", "there is no such case"))

    @app.exception_handler(ResolvedError)
    async def resolved(_: Request, error: ResolvedError) -> Response:
        return answer(
            Problem(409, "already_resolved", "the case has its answer already; that one stands")
        )

    @app.exception_handler(Exception)
    async def unknown(_: Request, error: Exception) -> Response:
        return answer(problem(error))


def _explained(error: RequestValidationError) -> Problem:
    first = error.errors()[0]
    place, kind = list(first["loc"]), first["type"]
    if kind == "json_invalid":
        return Problem(400, "invalid_json", "the body is not valid JSON")
    inside = place[1:] if place[:1] in (["body"], ["query"], ["path"]) else place
    field = schemas.known_name(inside[0]) if inside else None
    if field in schemas.UNSUPPORTED:
        return Problem(
            400,
            "unsupported",
            f"{field} asks for what this server does not do; leave it out",
            param=field,
        )
    if kind == "extra_forbidden":
        return Problem(
            400,
            "unknown_field",
            f"{field or 'body'} holds a field that is not known here; leave it out",
        )
    if kind == "missing" and not inside:
        return Problem(400, "no_body", "a JSON body is needed, with Content-Type: application/json")
    if kind == "model_attributes_type":
        return Problem(
            400,
            "invalid_value",
            "the body must be a JSON object, with Content-Type: application/json",
        )
    if kind == "string_too_long" and place[:1] == ["body"]:
        limit = first.get("ctx", {}).get("max_length")
        return Problem(
            413, "too_large", f"{field} may have {limit} characters; send less", param=field
        )
    if kind in ("string_pattern_mismatch", "string_too_short"):
        return Problem(400, "invalid_value", f"{field} is empty or not of its form", param=field)
    return Problem(
        400,
        "invalid_value",
        f"{field or 'body'}: {first['msg'].removeprefix('Value error, ')}",
        param=field,
    )


def problem(error: Exception) -> Problem:
    """An error of the service, as its asker is told of it."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, PromptTooLongError):
        return Problem(400, "context_length_exceeded", str(error), param="messages")
    if isinstance(error, UnavailableError):
        return Problem(503, "unavailable", str(error), retry_s=5)
    if isinstance(error, QueueFullError):
        return Problem(429, "too_busy", str(error), retry_s=2)
    if isinstance(error, ClientDisconnected):
        return Problem(499, "client_left", "the client has left")
    if isinstance(error, AbandonedError):
        return Problem(
            503, "stopping", "the server is going down; ask again in a moment", retry_s=10
        )
    tell(error)
    return Problem(500, "internal_error", "something went wrong here; it was logged")
