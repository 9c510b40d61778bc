"""The pages as one ASGI application."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from aegis.errors import BadInputError
from aegis.serve.metrics import ServerMetrics
from aegis.serve.middleware import AccessMiddleware, RequestLogMiddleware
from aegis.serve.middleware.access import RateLimiter
from aegis.web.pages import HERE, LANGUAGE_COOKIE, LANGUAGES, page
from aegis.web.run_pages import RunPages

_YEAR_S = 365 * 86_400


def build_ui(runs: Path) -> ASGIApp:
    """Build the pages of the runs in a folder, for this machine's loopback names only."""
    pages = [*RunPages(runs).routes(), Route("/language/{language}", choose_language)]
    static = Mount("/static", StaticFiles(directory=HERE / "static"))
    to_runs = RedirectResponse("/ui/runs")
    app = Starlette(
        routes=[
            Route("/", lambda _: to_runs),
            Route("/ui", lambda _: to_runs),
            Mount("/ui", routes=[Route("/", lambda _: to_runs), *pages, static]),
        ],
        exception_handlers={BadInputError: _show_error, 404: _show_missing},
    )
    app.router.redirect_slashes = False
    access = AccessMiddleware(app, tokens=None, rate_limiter=RateLimiter(0))
    return RequestLogMiddleware(access, metrics=ServerMetrics())


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
    return page(request, "message.html.j2", status=404, text=str(error))


def _show_missing(request: Request, _: Exception) -> Response:
    return page(request, "message.html.j2", status=404, text="There is no such page.")
