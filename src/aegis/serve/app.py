"""The ASGI application: routes, the queue before the service, and the middleware around them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.types import ASGIApp

from aegis import __version__
from aegis.serve.admission import RequestQueue
from aegis.serve.errors import HANDLERS
from aegis.serve.escalations import CaseQueue
from aegis.serve.metrics import ServerMetrics
from aegis.serve.middleware import AccessMiddleware, BodyLimitMiddleware, RequestLogMiddleware
from aegis.serve.middleware.access import RateLimiter
from aegis.serve.openapi import add_openapi
from aegis.serve.routes import ServerParts, answers, escalations, state
from aegis.serve.service import AnswerService
from aegis.serve.settings import ServeSettings
from aegis.serve.tokens import TokenFile


def build_app(
    service: AnswerService,
    cases: CaseQueue,
    *,
    settings: ServeSettings,
    metrics: ServerMetrics,
    tokens: TokenFile | None = None,
) -> ASGIApp:
    """Build the whole application; it asks for tokens where there are `tokens`."""
    queue = RequestQueue(service, capacity=settings.places, on_change=metrics.working.set)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.stopping.set()
        queue.close()

    app = FastAPI(
        title="AEGIS",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would lead to whatever the request calls its host
        lifespan=lifespan,
        exception_handlers=HANDLERS,
    )
    app.state.parts = ServerParts(service, queue, cases, metrics, settings, int(time.time()))
    for routes in (answers, escalations, state):
        app.include_router(routes.router)
    add_openapi(app, needs_token=tokens is not None)
    limited = BodyLimitMiddleware(app, max_bytes=settings.body_bytes, timeout_s=settings.body_s)
    rate_limiter = RateLimiter(settings.rate)
    checked = AccessMiddleware(limited, tokens=tokens, rate_limiter=rate_limiter)
    return RequestLogMiddleware(checked, metrics=metrics)
