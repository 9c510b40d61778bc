from __future__ import annotations

from typing import Any

import pytest

from tests.serve.fakes import House


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"logprobs": True}, "unsupported"),
        ({"top_logprobs": 3}, "unsupported"),
        ({"n": 2}, "unsupported"),
        ({"echo": True}, "unsupported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported"),
        ({"stop": ["secretword"]}, "unsupported"),
        ({"response_format": {"type": "json_object"}}, "unsupported"),
        ({"secretword": 1}, "unknown_field"),
        ({"messages": []}, "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "secretword"}]}, "invalid_value"),
        ({"messages": [{"role": "tool", "content": "secretword"}]}, "invalid_value"),
        ({"temperature": "secretword"}, "invalid_value"),
        ({"temperature": 3}, "invalid_value"),
        ({"max_tokens": 0}, "invalid_value"),
        ({"max_tokens": 1025}, "invalid_value"),
        ({"model": "secretword"}, "model_not_found"),
    ],
)
def test_a_chat_that_asks_for_what_there_is_not_is_turned_away(
    plain: House, changed: dict[str, Any], code: str
) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **changed}
    with plain.client() as client:
        answer = client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    assert answer.json()["error"]["code"] == code
    assert "secretword" not in answer.text
    assert plain.engine.thought == 0
