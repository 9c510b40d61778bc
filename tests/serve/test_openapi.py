"""The OpenAPI document and the server agree, tried with generated requests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode

from aegis.protocol.decisions import Decision
from aegis.serve.tokens import new_token
from tests.serve.fakes import FakeEngine, house

EXAMPLES = int(os.environ.get("AEGIS_EXAMPLES", "8"))  # of each kind for each path


def test_the_served_document_asks_for_a_token_and_tells_no_response_that_is_never_sent(
    tmp_path: Path,
) -> None:
    tokens = tmp_path / "tokens.json"
    new_token(tokens, "mai", ["ask"])
    client = TestClient(house(tmp_path, tokens=tokens).app, base_url="http://127.0.0.1")
    document = client.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    operations = [one for path in document["paths"].values() for one in path.values()]
    assert operations
    for operation in operations:
        assert "422" not in operation["responses"]
        assert ("security" in operation) == (operation["tags"] != ["state"])
    assert not {"HTTPValidationError", "ValidationError"} & document["components"]["schemas"].keys()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_breaks_the_server_or_its_document(tmp_path: Path, mode: GenerationMode) -> None:
    made = house(tmp_path, FakeEngine(judges=lambda prompt: Decision(len(prompt) % 4)))
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", made.app, headers={"Host": "127.0.0.1"}
    )
    schema.config.checks.negative_data_rejection.expected_statuses = [
        "400",
        "404",
        "405",
        "413",
    ]  # 413: too long
    operations = [found.ok() for found in schema.get_all_operations()]  # pyright: ignore[reportAttributeAccessIssue]
    assert len(operations) == 10
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not (
            operation.body or operation.query or operation.path_parameters
        ):
            continue  # nothing in it could be wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
        )
        def agrees(case: Any) -> None:
            case.call_and_validate(headers={"Host": "127.0.0.1"})

        agrees()
