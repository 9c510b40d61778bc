from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from aegis.protocol.decisions import Decision
from aegis.protocol.fixed_texts import fixed_text
from aegis.serve import service as service_module
from tests.serve.fakes import FakeEngine, House, house


@pytest.mark.parametrize("decision", [Decision.DENY, Decision.REFUSE, Decision.ESCALATION])
@pytest.mark.parametrize(("query", "language"), [("Which city?", "en"), ("どの都市ですか", "ja")])
def test_what_is_not_allowed_gets_a_fixed_text_of_its_language(
    tmp_path: Path, decision: Decision, query: str, language: str
) -> None:
    made = house(tmp_path, FakeEngine(judges=lambda _: decision))
    with made.client() as client:
        answer = client.post("/think", json={"query": query}).json()
    assert (answer["final"], answer["decision"]) == (fixed_text(decision, language), decision.name)
    assert answer["escalated"] is (decision is Decision.ESCALATION)
    assert made.cases.waiting() == (decision is Decision.ESCALATION)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("slow", [0.0, 0.15])
def test_what_cannot_be_recorded_is_not_answered(tmp_path: Path, stream: bool, slow: float) -> None:
    engine = FakeEngine(judges=lambda _: Decision.ESCALATION, seconds=slow)
    made = house(tmp_path, engine, keep_alive_s=0.05)
    made.audit.broken = True
    with made.client() as client:
        answer = client.post("/think", json={"query": "hi", "stream": stream})
        assert answer.status_code == (200 if stream and slow else 503)
        assert "unavailable" in answer.text
        assert fixed_text(Decision.ESCALATION, "en") not in answer.text
        assert made.cases.waiting() == 0
        made.audit.broken = False
        assert client.post("/think", json={"query": "hi"}).status_code == 200


def test_an_engine_that_fails_gives_the_fixed_refusal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(prompt: str, seed: int) -> None:
        raise RuntimeError("secretword in " + prompt)

    made = house(tmp_path, FakeEngine(says=fails))
    with caplog.at_level(logging.DEBUG), made.client() as client:
        answer = client.post("/think", json={"query": "hi"})
    assert answer.json()["final"] == fixed_text(Decision.REFUSE, "en")
    assert made.audit.entries[0].outcome == "withheld: engine error"
    assert "RuntimeError at test_service.py" in caplog.text
    assert "secretword" not in caplog.text + answer.text


def test_a_check_that_fails_gives_the_fixed_refusal(
    plain: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("secretword")

    monkeypatch.setattr(service_module, "find_leak", fails)
    with plain.client() as client:
        answer = client.post("/think", json={"query": "hi"})
    assert answer.json()["final"] == fixed_text(Decision.REFUSE, "en")
    assert plain.audit.entries[0].outcome == "withheld: check failed"


def test_an_engine_that_cannot_decide_is_unavailable(tmp_path: Path) -> None:
    def fails(prompt: str) -> Decision:
        raise RuntimeError("secretword")

    with house(tmp_path, FakeEngine(judges=fails)).client() as client:
        answer = client.post("/think", json={"query": "hi"})
    assert answer.status_code == 503
    assert "secretword" not in answer.text


def test_no_answer_in_time_is_the_fixed_refusal(tmp_path: Path) -> None:
    made = house(tmp_path, FakeEngine(hold=threading.Event()), answer_s=0.1)
    with made.client() as client:
        answer = client.post("/think", json={"query": "hi"}).json()
    assert answer["final"] == fixed_text(Decision.REFUSE, "en")
    assert made.audit.entries[0].outcome == "withheld: out of time"


def test_a_prompt_must_leave_room(tmp_path: Path) -> None:
    with house(tmp_path, FakeEngine(context=400)).client() as client:
        answer = client.post("/think", json={"query": "secretword " * 100})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "secretword" not in answer.text
