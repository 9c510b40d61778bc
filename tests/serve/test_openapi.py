"""The OpenAPI document and the server agree, tried with generated requests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from aegis.decisions import Decision
from tests.serve.fakes import FakeEngine, house

EXAMPLES = int(os.environ.get("AEGIS_EXAMPLES", "8"))
_CHECKS = schemathesis.checks


@pytest.fixture
def api(tmp_path: Path) -> Any:
    made = house(tmp_path, FakeEngine(judges=lambda prompt: Decision(len(prompt) % 4)))
    found = schemathesis.openapi.from_asgi("/openapi.json", made.app, base_url="http://127.0.0.1")
    return found


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_breaks_the_server_or_its_document(case: Any) -> None:
    case.call_and_validate(headers={"Host": "127.0.0.1"})
