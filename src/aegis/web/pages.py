"""From a template to a page: the reader's language, text as text, and a policy that lets nothing
else run."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from aegis.inputs.text import escaped

HERE = Path(__file__).parent
LANGUAGES = {"en": "English", "ja": "日本語"}
LANGUAGE_COOKIE = "aegis_language"
HEADERS = {
    # Under no-referrer, browsers send no origin with a form.
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_JAPANESE: dict[str, str] = json.loads((HERE / "ja.json").read_text(encoding="utf-8"))


def language_of(request: Request) -> str:
    """Return the language that was chosen, or the first of the browser's that there is."""
    if (chosen := request.cookies.get(LANGUAGE_COOKIE)) in LANGUAGES:
        return str(chosen)
    for wish in request.headers.get("accept-language", "").split(","):
        if (name := wish.strip()[:2].lower()) in LANGUAGES:
            return name
    return "en"


def page(request: Request, template: str, *, status: int = 200, **content: Any) -> HTMLResponse:
    """Render a template in the reader's language.

    Args:
        content: what the template shows; every text in it is escaped.
    """
    language = language_of(request)
    phrases = _JAPANESE if language == "ja" else {}

    def translated(text: str, **values: object) -> str:
        return phrases.get(text, text).format(**values)

    html = _ENVIRONMENT.get_template(template).render(
        content, t=translated, language=language, languages=LANGUAGES, path=request.url.path
    )
    return HTMLResponse(html, status, headers=HEADERS)


def age(at: str) -> str:
    """Return how long ago a time in ISO 8601 is, roughly; empty where it is none."""
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - moment.astimezone(UTC)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def short(value: float) -> str:
    """Return a number with four digits that count."""
    return f"{value:.4g}"


def _shown(value: object) -> object:
    """Write out what turns the text around it or cannot be seen."""
    return escaped(value) if type(value) is str else value


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["age"] = age
    return environment


_ENVIRONMENT = _environment()
