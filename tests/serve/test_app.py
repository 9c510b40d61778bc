from __future__ import annotations

from tests.serve.fakes import House


def test_nothing_is_asked_of_a_server_that_is_stopping(plain: House) -> None:
    with plain.client() as client:
        assert client.get("/readyz").status_code == 200
        plain.service.draining.set()
        assert client.get("/readyz").status_code == 503
        assert client.post("/think", json={"query": "hi"}).status_code == 503
