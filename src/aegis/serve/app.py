"""The application: which question goes where, and what comes back."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from aegis import __version__
from aegis.serve import responses, schemas
from aegis.serve.admission import QueueFullError, RequestQueue, Ticket
from aegis.serve.conversation import Turn
from aegis.serve.document import document
from aegis.serve.errors import Problem, handle_errors, problem
from aegis.serve.escalations import Case, CaseQueue, NoCaseError
from aegis.serve.metrics import Metrics
from aegis.serve.middleware import AccessMiddleware, Caller
from aegis.serve.service import AbandonedError, AnswerRequest, AnswerResult, AnswerService
from aegis.serve.tokens import Scope, TokenFile

SSE = "text/event-stream"


@dataclass(frozen=True)
class ServeSettings:
    """What a server allows.

    Args:
        final_tokens: of an answer whose asker names no limit.
        seed: of every question that brings none; None draws one each time.
        places: questions answered or waiting at once.
        keep_alive_s: between signs of life in a stream.
    """

    final_tokens: int = 160
    temperature: float = 0.7
    seed: int | None = None
    places: int = 64
    body_bytes: int = 1 << 18
    body_s: float = 10
    rate_per_minute: int = 0
    keep_alive_s: float = 5


def build_app(
    service: AnswerService,
    cases: CaseQueue,
    *,
    settings: ServeSettings,
    metrics: Metrics,
    tokens: TokenFile | None = None,
) -> AccessMiddleware:
    """The whole ASGI application, doors included."""
    line = RequestQueue(service, places=settings.places, changed=metrics.working.set)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.stopping.set()
        line.close()

    app = FastAPI(
        title="AEGIS", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    _answers(app, line, service, settings)
    _cases(app, cases)
    _state(app, service, cases, metrics)
    handle_errors(app)
    document(app, locked=tokens is not None)
    return AccessMiddleware(
        app,
        tokens=tokens,
        metrics=metrics,
        body_bytes=settings.body_bytes,
        body_s=settings.body_s,
        rate_per_minute=settings.rate_per_minute,
    )


def caller(*scopes: Scope) -> Any:
    """A dependency: the caller, who has one of the scopes."""

    def found(request: Request) -> Caller:
        who: Caller = request.state.caller
        if not set(scopes) & set(who.scopes):
            raise Problem(
                403, "missing_scope", f"this needs a token with the scope {' or '.join(scopes)}"
            )
        return who

    return Depends(found)


Asker = Annotated[Caller, caller("ask")]
Reviewer = Annotated[Caller, caller("review")]
AskerOrReviewer = Annotated[Caller, caller("ask", "review")]
Admin = Annotated[Caller, caller("admin")]
CaseId = Annotated[str, Path(pattern=r"^(chatcmpl-)?[0-9a-f]{32}$")]


def _documented(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {
        code: {"model": schemas.ErrorBody}
        for code in (400, 401, 403, 408, 413, 421, 429, 500, 503, *codes)
    }


_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_STREAM = {SSE: {}}


def _answers(
    app: FastAPI, line: RequestQueue, service: AnswerService, settings: ServeSettings
) -> None:
    model, born = service.engine.model, int(time.time())

    @app.post(
        "/think",
        responses={**_documented(), 200: {"model": schemas.ThinkResponse, "content": _STREAM}},
        tags=["answers"],
    )
    async def think(request: Request, body: schemas.ThinkRequest, who: Asker) -> Response:
        """One question, one public answer."""
        ask = AnswerRequest(
            id=request.state.request_id,
            caller=who.id,
            user=_user(who, body.user_id),
            turns=(Turn("user", body.query),),
            final_tokens=body.max_new_tokens or settings.final_tokens,
            temperature=settings.temperature if body.temperature is None else body.temperature,
            seed=_seed(None, settings),
        )
        working = _join(line, ask)
        if body.stream:
            return await _streamed(line, working, request, settings, responses.think_events)
        return Response(
            responses.think_body(await _reply(line, working, request)),
            media_type="application/json",
        )

    @app.post(
        "/v1/chat/completions",
        responses={**_documented(404), 200: {"model": schemas.ChatResponse, "content": _STREAM}},
        tags=["answers"],
    )
    async def chat(request: Request, body: schemas.ChatRequest, who: Asker) -> Response:
        """A chat in OpenAI's form."""
        if body.model != model:
            raise Problem(
                404,
                "model_not_found",
                "there is no such model here; GET /v1/models names it",
                param="model",
            )
        if body.messages[-1].role != "user" or not body.messages[-1].text.strip():
            last = "the last message must be the user's and hold more than spaces"
            raise Problem(400, "invalid_value", last, param="messages")
        ask = AnswerRequest(
            id=request.state.request_id,
            caller=who.id,
            user=_user(who, body.user),
            turns=tuple(_turn(message) for message in body.messages),
            final_tokens=body.max_completion_tokens or body.max_tokens or settings.final_tokens,
            temperature=settings.temperature if body.temperature is None else body.temperature,
            seed=_seed(body.seed, settings),
        )
        working, created = _join(line, ask), int(time.time())
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return await _streamed(
                line,
                working,
                request,
                settings,
                lambda reply: responses.chat_events(
                    reply, model=model, created=created, include_usage=usage
                ),
            )
        reply = await _reply(line, working, request)
        return Response(
            responses.chat_body(reply, model=model, created=created), media_type="application/json"
        )

    card = schemas.ModelCard(id=model, object="model", created=born, owned_by="aegis")

    @app.get("/v1/models", responses=_documented(), tags=["answers"])
    def models(_: Asker) -> schemas.ModelList:
        """The one model."""
        return schemas.ModelList(object="list", data=[card])

    @app.get("/v1/models/{name:path}", responses=_documented(404), tags=["answers"])
    def one_model(name: Annotated[str, Path(max_length=200)], _: Asker) -> schemas.ModelCard:
        if name != model:
            raise Problem(
                404, "model_not_found", "there is no such model here; GET /v1/models names it"
            )
        return card


def _cases(app: FastAPI, cases: CaseQueue) -> None:
    @app.get("/escalations", responses=_documented(), tags=["escalations"])
    def listed(
        _: Reviewer,
        state: Annotated[Literal["open", "resolved"], Query()] = "open",
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> schemas.CaseList:
        """Cases that wait, the oldest first; or resolved ones, the newest first."""
        found = cases.list(resolved=state == "resolved", limit=limit)
        return schemas.CaseList(
            cases=[_view(case, whole=True) for case in found], waiting=cases.waiting()
        )

    @app.get("/escalations/{id}", responses=_documented(404), tags=["escalations"])
    def one(id: CaseId, who: AskerOrReviewer) -> schemas.CaseView:
        """A case: the whole of it for reviewers, the answer for whoever asked."""
        case = cases.get(id.removeprefix("chatcmpl-"))
        whole = "review" in who.scopes
        if not whole and case.owner != who.id:
            raise NoCaseError("there is no such case")
        return _view(case, whole=whole)

    @app.post("/escalations/{id}", responses=_documented(404, 409), tags=["escalations"])
    def resolve(id: CaseId, body: schemas.Resolution, who: Reviewer) -> schemas.CaseView:
        """Answer a case. The first answer stands."""
        case = cases.resolve(
            id.removeprefix("chatcmpl-"), body.answer, reviewer=who.name or "local"
        )
        return _view(case, whole=True)


def _view(case: Case, *, whole: bool) -> schemas.CaseView:
    return schemas.CaseView(
        id=case.id,
        state="resolved" if case.resolved else "open",
        opened=case.opened,
        resolved=case.resolved,
        answer=case.answer,
        query=case.query if whole else None,
        user=case.user if whole else None,
        reviewer=case.reviewer if whole else None,
        probabilities=schemas.probabilities(case.probabilities) if whole else None,
    )


def _state(app: FastAPI, service: AnswerService, cases: CaseQueue, metrics: Metrics) -> None:
    @app.get("/healthz", tags=["state"])
    async def healthz() -> schemas.State:
        """The process lives."""
        return schemas.State(status="ok")

    @app.get("/readyz", responses={503: {"model": schemas.State}}, tags=["state"])
    async def readyz() -> Response:
        """Questions are taken."""
        stopping = service.stopping.is_set() or service.draining.is_set()
        state = schemas.State(status="stopping" if stopping else "ok")
        return JSONResponse(state.model_dump(), 503 if stopping else 200)

    @app.get(
        "/metrics",
        responses={
            **_documented(),
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        },
        tags=["state"],
    )
    def prometheus(_: Admin) -> Response:
        """Counts and times in Prometheus's form."""
        metrics.waiting_cases.set(cases.waiting())
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _join(line: RequestQueue, ask: AnswerRequest) -> Ticket:
    if line.service.draining.is_set():
        raise problem(AbandonedError("stopping"))
    try:
        return line.join(ask)
    except QueueFullError as error:
        raise problem(error) from None


async def _reply(line: RequestQueue, working: Ticket, request: Request) -> AnswerResult:
    try:
        await line.wait(working, request)
        return working.future.result()
    except Exception as error:
        raise problem(error) from None


async def _streamed(
    line: RequestQueue,
    working: Ticket,
    request: Request,
    settings: ServeSettings,
    events: Callable[[AnswerResult], Iterable[bytes]],
) -> Response:
    """The events of a whole, checked and recorded answer; signs of life before it. An early error
    keeps its status."""
    headers = {"X-Accel-Buffering": "no"}
    try:
        if await line.wait(working, request, seconds=settings.keep_alive_s):
            return StreamingResponse(
                _each(events(working.future.result())), headers=headers, media_type=SSE
            )
    except Exception as error:
        raise problem(error) from None

    async def slowly() -> AsyncIterator[bytes]:
        try:
            while True:
                yield responses.KEEP_ALIVE
                if await line.wait(working, request, seconds=settings.keep_alive_s):
                    break
            for event in events(working.future.result()):
                yield event
        except Exception as error:
            yield responses.error_event(problem(error).body())
        finally:
            working.abandoned.set()

    return StreamingResponse(slowly(), headers=headers, media_type=SSE)


async def _each(events: Iterable[bytes]) -> AsyncIterator[bytes]:
    for event in events:
        yield event


def _turn(message: schemas.Message) -> Turn:
    return Turn("system" if message.role == "developer" else message.role, message.text)


def _user(who: Caller, named: str | None) -> str:
    return "/".join(part for part in (who.name, named) if part)


def _seed(named: int | None, settings: ServeSettings) -> int:
    chosen = named if named is not None else settings.seed
    return secrets.randbits(31) if chosen is None else chosen
