from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.serve.fakes import BODIES, FakeEngine, house, thinking


def test_logs_and_metrics_hold_no_words_of_anyone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = house(tmp_path, FakeEngine(says=lambda *_: thinking("finalword")))
    with caplog.at_level(logging.DEBUG), made.client() as client:
        client.post("/think?secretword=1", json={"query": "secretword", "user_id": "secretword"})
        client.post("/secretword", json={"query": "secretword"})
        metrics = client.get("/metrics").text
    assert 'aegis_decisions_total{decision="ALLOW"} 1.0' in metrics
    assert "/think 200" in caplog.text
    ours = "".join(
        record.getMessage() for record in caplog.records if not record.name.startswith("httpx")
    )
    said = (ours + metrics).replace("ALLOW", "")
    assert not [word for word in ("secretword", "finalword", *BODIES.values()) if word in said]
