"""Whether the server lives, takes questions, and what it has counted."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from aegis.serve import schemas
from aegis.serve.routes import Admin, Parts, errors

router = APIRouter(tags=["state"])
_TEXT = {"content": {"text/plain": {"schema": {"type": "string"}}}}


@router.get("/", include_in_schema=False)
async def root() -> dict[str, str]:
    """Say where to go."""
    return {"ask": "/think", "chat": "/v1/chat/completions", "documentation": "/docs"}


@router.get("/healthz")
async def healthz() -> schemas.State:
    """Say that the process lives."""
    return schemas.State(status="ok")


@router.get("/readyz", responses={503: {"model": schemas.State}})
async def readyz(parts: Parts) -> Response:
    """Say whether questions are taken."""
    service = parts.service
    stopping = service.stopping.is_set() or service.draining.is_set()
    state = schemas.State(status="stopping" if stopping else "ok")
    return JSONResponse(state.model_dump(), 503 if stopping else 200)


@router.get("/metrics", responses={**errors(), 200: _TEXT})
def metrics(_: Admin, parts: Parts) -> Response:
    """Return counts and times in Prometheus's form."""
    parts.metrics.waiting_cases.set(parts.cases.waiting())
    return Response(parts.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
