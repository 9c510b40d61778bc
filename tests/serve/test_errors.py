from __future__ import annotations

import pytest

from tests.serve.fakes import House


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"query": "secretword"', 400),
        (b"[]", 400),
        (b'"secretword"', 400),
        (b'{"query": "\xff secretword"}', 400),
        (b'{"query": "\\ud800 secretword"}', 400),
        (b'{"query": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400),
        (b'{"query": ' + b'{"a":' * 40_000 + b"1" + b"}" * 40_000 + b"}", 400),
        (b'{"query": ""}', 400),
        (b'{"query": "   "}', 400),
        (b'{"query": 7}', 400),
        (b'{"query": null}', 400),
        (b'{"query": "hi", "secret word": 1}', 400),
        (b'{"query": "hi", "temperature": NaN}', 400),
        (b'{"query": "hi", "temperature": 1e400}', 400),
        (b'{"query": "hi", "max_new_tokens": 1' + b"0" * 5000 + b"}", 400),
        (b'{"query": "hi", "max_new_tokens": true}', 400),
        (b'{"query": "hi", "stream": "secretword"}', 400),
        (b'{"query": "hi", "user_id": "' + b"secretword" * 20 + b'"}', 413),
        (b'{"query": "' + b"secretword" * 10_000 + b'"}', 413),
        (b'{"query": "' + b"secretword" * 100_000 + b'"}', 413),
    ],
)
def test_bad_input_is_told_and_never_repeated(plain: House, body: bytes, status: int) -> None:
    with plain.client(raise_server_exceptions=False) as client:
        answer = client.post("/think", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"]["message"]
    assert "secret" not in answer.text + str(answer.headers)
    assert plain.engine.thought == 0
