"""The OpenAPI document, true to what the server answers, and a page of it that needs no other
server."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse


def document(app: FastAPI, *, locked: bool) -> None:
    """The OpenAPI document, true to what the server answers, and a page of it that needs no other
    server."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = made()
            for operation in (
                operation for path in found["paths"].values() for operation in path.values()
            ):
                operation["responses"].pop("422", None)
                if locked and operation["tags"] != ["state"]:
                    operation["security"] = [{"token": []}]
            for unused in ("HTTPValidationError", "ValidationError"):
                found["components"]["schemas"].pop(unused, None)
            if locked:
                found["components"]["securitySchemes"] = {
                    "token": {"type": "http", "scheme": "bearer"}
                }
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi  # pyright: ignore[reportAttributeAccessIssue]

    @app.get("/docs", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(
            "".join(_page(openapi())), headers={"Content-Security-Policy": "default-src 'none'"}
        )


def _page(document: dict[str, Any]) -> Iterator[str]:
    yield f"<!doctype html><meta charset=utf-8><title>AEGIS</title><h1>AEGIS {html.escape(document['info']['version'])}</h1>"
    yield "<p>The whole of it: <a href='/openapi.json'>openapi.json</a></p><table>"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            about = operation.get("description") or operation["summary"]
            yield f"<tr><td>{method.upper()}<td><code>{html.escape(path)}</code><td>{html.escape(about)}</tr>"
    yield "</table>"
