"""The OpenAPI document, true to what the server answers, and a page of it that needs no other
server."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse


def add_openapi(app: FastAPI, *, needs_token: bool) -> None:
    """Correct the document of an application that has all its routes, and add `/docs`."""
    document = app.openapi()
    components = document["components"]
    for operation in (one for path in document["paths"].values() for one in path.values()):
        operation["responses"].pop("422", None)
        if needs_token and operation["tags"] != ["state"]:
            operation["security"] = [{"token": []}]
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    if needs_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    page = "".join(_page(document))
    # FastAPI would make it anew, without the corrections, once a route is added.
    app.openapi = lambda: document  # pyright: ignore[reportAttributeAccessIssue]

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'"})


def _page(document: dict[str, Any]) -> Iterator[str]:
    yield "<!doctype html><meta charset=utf-8><title>AEGIS</title>"
    yield f"<h1>AEGIS {html.escape(document['info']['version'])}</h1>"
    yield "<p>The whole of it: <a href='/openapi.json'>openapi.json</a></p><table>"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            about = html.escape(operation.get("description") or operation["summary"])
            yield f"<tr><td>{method.upper()}<td><code>{html.escape(path)}</code><td>{about}</tr>"
    yield "</table>"
