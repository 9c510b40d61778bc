"""Questions and their answers: `/think` and OpenAI's chat."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response, StreamingResponse

from aegis.serve import schemas
from aegis.serve.admission import Ticket
from aegis.serve.conversation import Turn
from aegis.serve.errors import Rejection, to_rejection
from aegis.serve.responses import KEEP_ALIVE, ChatFormat, ResponseFormat, ThinkFormat, event
from aegis.serve.routes import Asker, Parts, ServerParts, StrictRoute, errors
from aegis.serve.service import AbandonedError, AnswerRequest
from aegis.serve.settings import MOST_FINAL_TOKENS

router = APIRouter(tags=["answers"], route_class=StrictRoute)
_SSE = "text/event-stream"
_STREAM = {_SSE: {}}


@router.post(
    "/think", responses={**errors(504), 200: {"model": schemas.ThinkResponse, "content": _STREAM}}
)
async def think(
    request: Request, body: schemas.ThinkRequest, caller: Asker, parts: Parts
) -> Response:
    """Answer one question."""
    settings = parts.settings
    answer_request = AnswerRequest(
        id=request.state.request_id,
        caller=caller.id,
        user=_user(caller.name, body.user_id),
        turns=(Turn("user", body.query),),
        final_tokens=body.max_new_tokens,
        temperature=settings.temperature if body.temperature is None else body.temperature,
        seed=_seed(settings.seed),
    )
    return await _respond(parts, answer_request, request, ThinkFormat(), stream=body.stream)


@router.post(
    "/v1/chat/completions",
    responses={**errors(404, 504), 200: {"model": schemas.ChatResponse, "content": _STREAM}},
)
async def chat(
    request: Request, body: schemas.ChatRequest, caller: Asker, parts: Parts
) -> Response:
    """Answer a chat in OpenAI's form."""
    settings, session = parts.settings, parts.service.engine.name
    _require_model(body.model, parts, param="model")
    if body.messages[-1].role != "user" or not body.messages[-1].text.strip():
        message = "the last message must be the user's and hold more than spaces"
        raise Rejection(400, "invalid_value", message, param="messages")
    answer_request = AnswerRequest(
        id=request.state.request_id,
        caller=caller.id,
        user=_user(caller.name, body.user),
        turns=tuple(
            Turn("system" if message.role == "developer" else message.role, message.text)
            for message in body.messages
            if message.text.strip()
        ),
        final_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=settings.temperature if body.temperature is None else body.temperature,
        top_p=body.top_p or 1.0,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        seed=_seed(settings.seed if body.seed is None else body.seed),
    )
    usage = bool(body.stream_options and body.stream_options.include_usage)
    form = ChatFormat(settings.model_name, session, int(time.time()), include_usage=usage)
    return await _respond(parts, answer_request, request, form, stream=bool(body.stream))


@router.get("/v1/models", responses=errors())
def models(_: Asker, parts: Parts) -> schemas.ModelList:
    """Name the one model."""
    return schemas.ModelList(object="list", data=[_card(parts)])


@router.get("/v1/models/{name:path}", responses=errors(404))
def model(name: Annotated[str, Path(max_length=200)], _: Asker, parts: Parts) -> schemas.ModelCard:
    _require_model(name, parts)
    return _card(parts)


def _card(parts: ServerParts) -> schemas.ModelCard:
    return schemas.ModelCard(
        id=parts.settings.model_name,
        object="model",
        created=parts.started,
        owned_by="aegis",
        session=parts.service.engine.name,
    )


def _require_model(name: str, parts: ServerParts, *, param: str | None = None) -> None:
    """Turn away who names another model than this one, by its id or its session."""
    if name not in (parts.settings.model_name, parts.service.engine.name):
        message = "there is no such model here; GET /v1/models names it"
        raise Rejection(404, "model_not_found", message, param=param)


def _user(caller: str, named: str | None) -> str:
    return "/".join(part for part in (caller, named) if part)


def _seed(seed: int | None) -> int:
    return secrets.randbits(31) if seed is None else seed


async def _respond(
    parts: ServerParts,
    answer_request: AnswerRequest,
    request: Request,
    form: ResponseFormat,
    *,
    stream: bool,
) -> Response:
    """Return the whole, checked and recorded answer, at once or as a stream with signs of life
    before it. An early error keeps its status."""
    if parts.service.draining.is_set():
        raise AbandonedError("stopping")
    ticket = parts.queue.submit(answer_request)
    headers = {"X-Accel-Buffering": "no"} if stream else {}
    if (answer_request.final_tokens or 0) > MOST_FINAL_TOKENS:
        headers["X-Max-Tokens"] = str(MOST_FINAL_TOKENS)
    keep_alive_s = parts.settings.keep_alive_s
    done = await ticket.wait(request, timeout_s=keep_alive_s if stream else math.inf)
    result = ticket.future.result() if done else None
    if result and not stream:
        return Response(form.body(result), headers=headers, media_type="application/json")
    return StreamingResponse(
        _events(ticket, request, form, keep_alive_s), headers=headers, media_type=_SSE
    )


async def _events(
    ticket: Ticket, request: Request, form: ResponseFormat, keep_alive_s: float
) -> AsyncIterator[bytes]:
    try:
        while not ticket.future.done():
            yield KEEP_ALIVE
            await ticket.wait(request, timeout_s=keep_alive_s)
        for part in form.events(ticket.future.result()):
            yield part
    except Exception as error:
        yield event(to_rejection(error).body())
    finally:
        ticket.abandoned.set()
