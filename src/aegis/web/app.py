"""The pages as one ASGI application."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from aegis.errors import AegisError, BadInputError
from aegis.serve.errors import Rejection
from aegis.serve.metrics import ServerMetrics
from aegis.serve.middleware import AccessMiddleware, BodyLimitMiddleware, RequestLogMiddleware
from aegis.serve.middleware.access import RateLimiter
from aegis.serve.reviews import ReviewDesk
from aegis.serve.service import AnswerService
from aegis.web.audit_pages import AuditPages
from aegis.web.compare_pages import ComparePages
from aegis.web.model_pages import ModelPages
from aegis.web.pages import HERE, LANGUAGE_COOKIE, LANGUAGES, page
from aegis.web.review_pages import ReviewPages
from aegis.web.run_pages import RunPages

_MOST_BYTES = 1 << 19
_YEAR_S = 365 * 86_400


def build_ui(
    runs: Path,
    desk: ReviewDesk | None = None,
    *,
    service: AnswerService | None = None,
    audit: AuditPages | None = None,
) -> ASGIApp:
    """Build the pages of the runs in a folder and, where there are such, of a queue, a model and an
    audit log.

    They answer to this machine's loopback names only, and forms only to themselves.
    """
    of_runs = RunPages(runs)
    parts = (
        of_runs,
        ComparePages(of_runs),
        ReviewPages(desk),
        ModelPages(service),
        audit or AuditPages(),
    )
    pages = [route for part in parts for route in part.routes()]
    pages.append(Route("/language/{language}", choose_language))
    static = Mount("/static", StaticFiles(directory=HERE / "static"))
    to_runs = RedirectResponse("/ui/runs")
    app = Starlette(
        routes=[
            Route("/", lambda _: to_runs),
            Route("/ui", lambda _: to_runs),
            Mount("/ui", routes=[Route("/", lambda _: to_runs), *pages, static]),
        ],
        exception_handlers={AegisError: _show_error, 404: _show_missing},
    )
    app.router.redirect_slashes = False
    limited = BodyLimitMiddleware(OwnForms(app), max_bytes=_MOST_BYTES, timeout_s=10)
    access = AccessMiddleware(limited, tokens=None, rate_limiter=RateLimiter(0))
    return RequestLogMiddleware(access, metrics=service.metrics if service else ServerMetrics())


def with_pages(app: ASGIApp, service: AnswerService, runs: Path) -> ASGIApp:
    """Return a server's application with the pages below `/ui`."""
    desk = ReviewDesk(service.cases, service.audit.append)
    audit = AuditPages(service.audit.folder, service.audit.keys)
    ui = build_ui(runs, desk, service=service, audit=audit)

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        of_ui = scope["type"] == "http" and f"{scope['path']}/".startswith("/ui/")
        await (ui if of_ui else app)(scope, receive, send)

    return either


class OwnForms:
    """Turn away what another page's form or script sends: browsers name where it comes from."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            headers = Headers(scope=scope)
            own = f"{scope['scheme']}://{headers.get('host', '')}"
            if headers.get("origin") != own:
                message = "only the page itself may send this; open it and send it again"
                raise Rejection(403, "wrong_origin", message)
        await self.app(scope, receive, send)


def choose_language(request: Request) -> Response:
    """Keep the language in a cookie, and go back to the page."""
    language, back = request.path_params["language"], request.query_params.get("from", "")
    if language not in LANGUAGES:
        raise BadInputError(f"{language}: is no language of these pages; use en or ja")
    if not back.startswith("/ui/"):
        back = "/ui/runs"
    response = RedirectResponse(back, 303)
    response.set_cookie(
        LANGUAGE_COOKIE, language, max_age=_YEAR_S, path="/ui", httponly=True, samesite="strict"
    )
    return response


def _show_error(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, BadInputError) else 503
    return page(request, "message.html.j2", status=status, text=str(error))


def _show_missing(request: Request, _: Exception) -> Response:
    return page(request, "message.html.j2", status=404, text="There is no such page.")
