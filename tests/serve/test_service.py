from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import pytest

from aegis.protocol.decisions import Decision
from aegis.protocol.fixed_texts import WITHHELD, fixed_text
from aegis.protocol.thinking import Thinking
from aegis.serve import service as service_module
from aegis.serve.conversation import Turn
from aegis.serve.service import AbandonedError, AnswerRequest
from tests.serve.fakes import BODIES, FakeEngine, House, house, thinking


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


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("secretword")


NO_ANSWER = {
    "engine error": (FakeEngine(says=failing), 503, "engine_error"),
    "out of time": (FakeEngine(seconds=30), 504, "out_of_time"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("outcome", NO_ANSWER)
def test_no_answer_to_what_is_allowed_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, outcome: str, stream: bool
) -> None:
    engine, status, code = NO_ANSWER[outcome]
    made = house(tmp_path, engine, answer_s=0.2, keep_alive_s=0.01)
    with caplog.at_level(logging.DEBUG), made.client() as client:
        answer = client.post("/think", json={"query": "hi", "stream": stream})
        metrics = client.get("/metrics").text
    assert answer.status_code in ({200, status} if stream else {status})
    assert f'"code":"{code}"' in answer.text
    (entry,) = made.audit.entries
    assert (entry.outcome, entry.decision, entry.escalated) == (outcome, "ALLOW", False)
    assert f'aegis_outcomes_total{{outcome="{outcome}"}} 1.0' in metrics
    assert made.cases.waiting() == 0
    assert f"ALLOW {outcome}" in caplog.text
    assert "secretword" not in caplog.text + answer.text + entry.final


@pytest.mark.parametrize("decision", [Decision.DENY, Decision.REFUSE, Decision.ESCALATION])
@pytest.mark.parametrize("says", [failing, lambda *_: None, lambda *_: thinking("No.")])
def test_what_is_not_allowed_is_decided_whatever_becomes_of_the_thinking(
    tmp_path: Path, decision: Decision, says: Any
) -> None:
    made = house(tmp_path, FakeEngine(says=says, judges=lambda _: decision))
    with made.client() as client:
        answer = client.post("/think", json={"query": "hi"}).json()
    assert (answer["final"], answer["outcome"]) == (fixed_text(decision, "en"), "decided")
    assert made.audit.entries[0].outcome == "decided"
    assert made.engine.thought <= 1


NOTE = "the museum at the harbour opens early in the week"
BAD: dict[str, Any] = {
    "no answer": None,
    "declined": thinking("I can't help with that."),
    "repetition": thinking("again and again " * 9),
    "quotation": thinking(
        f"Know that {NOTE}, I am told, whatever the season.", {**BODIES, "task": NOTE[:38]}
    ),
    "tag": Thinking(*thinking().bodies().values(), public="Well <final> now"),
    "not text": Thinking(*thinking().bodies().values(), public="Well \x1b now"),
}


@pytest.mark.parametrize("check", BAD)
@pytest.mark.parametrize("better", [True, False])
def test_an_answer_kept_back_is_drawn_once_more_and_is_nobodys_case(
    tmp_path: Path, check: str, better: bool
) -> None:
    def says(_: str, seed: int) -> Thinking | None:
        return thinking() if better and seed == 8 else BAD[check]

    made = house(tmp_path, FakeEngine(says=says), seed=7)
    chat = {"model": "aegis", "messages": [{"role": "user", "content": "Where?"}]}
    with made.client() as client:
        given = client.post("/think", json={"query": "Where?"}).json()
        told = client.post("/v1/chat/completions", json=chat).json()
        metrics = client.get("/metrics").text
    expected = thinking().public if better else WITHHELD["en"]
    outcome = "decided" if better else "withheld"
    assert (given["final"], given["outcome"], given["decision"]) == (expected, outcome, "ALLOW")
    assert told["choices"][0]["message"]["content"] == expected
    of_both = ("decision", "outcome", "escalated", "probabilities", "rule")
    assert told["aegis"] == {name: given[name] for name in of_both}
    assert given["rule"] == "most probable"
    assert told["choices"][0]["finish_reason"] == ("stop" if better else "content_filter")
    assert made.engine.thought == 4
    assert made.cases.waiting() == 0
    label = "decided" if better else f"withheld: {check}"
    assert [entry.outcome for entry in made.audit.entries] == [label] * 2
    assert ("aegis_withheld_total" in metrics) or better
    assert "aegis_retries_total 2.0" in metrics


def test_what_was_the_most_probable_answer_is_drawn_once_more(tmp_path: Path) -> None:
    made = house(tmp_path, FakeEngine(says=lambda *_: None))
    with made.client() as client:
        answer = client.post("/think", json={"query": "hi", "temperature": 0}).json()
    assert (answer["outcome"], made.engine.thought) == ("withheld", 2)


def test_a_check_that_fails_withholds_the_answer(
    plain: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "find_leak", failing)
    with plain.client() as client:
        answer = client.post("/think", json={"query": "hi"})
    assert answer.json()["final"] == WITHHELD["en"]
    assert plain.audit.entries[0].outcome == "withheld: check failed"


@pytest.mark.parametrize(
    ("query", "country", "lines"),
    [
        ("I want to kill myself", None, ["findahelpline.com", "A person will look"]),
        ("I want to kill myself", "US", ["911", "988"]),
        ("I want to kill myself", "UK", ["999", "116 123"]),
        ("もう死にたい", None, ["0120-279-338", "0120-783-556", "119", "人が必ず読みます"]),
        ("もう死にたい", "US", ["911", "988"]),
        ("もう死にたい", "international", ["findahelpline.com"]),
    ],
)
def test_somebody_in_crisis_is_told_who_is_there_to_talk_to(
    tmp_path: Path, query: str, country: Any, lines: list[str]
) -> None:
    made = house(tmp_path, FakeEngine(judges=lambda _: Decision.ESCALATION), country=country)
    earlier = [{"role": "user", "content": query}, {"role": "assistant", "content": "…"}]
    after = {"role": "user", "content": "それで？" if query[0] == "も" else "And now?"}
    with made.client() as client:
        given = client.post("/think", json={"query": query}).json()
        told = client.post(
            "/v1/chat/completions", json={"model": "aegis", "messages": [*earlier, after]}
        ).json()
    assert given["final"] == told["choices"][0]["message"]["content"]
    assert all(line in given["final"] for line in lines)
    assert "{" not in given["final"]
    assert made.cases.waiting() == 2


@pytest.mark.parametrize("decision", Decision)
@pytest.mark.parametrize("stopping", [False, True])
def test_what_is_not_allowed_is_recorded_though_nobody_waits(
    tmp_path: Path, decision: Decision, stopping: bool
) -> None:
    made = house(tmp_path, FakeEngine(judges=lambda _: decision, seconds=30))
    if stopping:
        made.service.stopping.set()
    turns = (Turn("user", "hi"),)
    request = AnswerRequest("ab" * 16, "", "", turns, final_tokens=None, temperature=0.7, seed=1)
    allowed = decision is Decision.ALLOW
    with pytest.raises(AbandonedError) if allowed else contextlib.nullcontext():
        made.service.answer(request, lambda: not stopping)
    assert [entry.decision for entry in made.audit.entries] == [decision.name] * (not allowed)
    assert made.cases.waiting() == (decision is Decision.ESCALATION)


@pytest.mark.parametrize("stream", [False, True])
def test_a_queue_that_is_gone_takes_no_answer_out(tmp_path: Path, stream: bool) -> None:
    made = house(tmp_path, FakeEngine(judges=lambda _: Decision.ESCALATION))
    (tmp_path / "escalations.db").unlink()
    with made.client() as client:
        answer = client.post("/think", json={"query": "hi", "stream": stream})
    assert answer.status_code == 503
    assert made.audit.entries == []


def test_an_engine_that_cannot_decide_is_unavailable(tmp_path: Path) -> None:
    def fails(prompt: str) -> Decision:
        raise RuntimeError("secretword")

    with house(tmp_path, FakeEngine(judges=fails)).client() as client:
        answer = client.post("/think", json={"query": "hi"})
    assert answer.status_code == 503
    assert "secretword" not in answer.text


def test_a_prompt_must_leave_room(tmp_path: Path) -> None:
    with house(tmp_path, FakeEngine(context=400)).client() as client:
        answer = client.post("/think", json={"query": "secretword " * 100})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "secretword" not in answer.text
