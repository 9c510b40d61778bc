"""Whole topics: what is asked again, what stops, what is kept, and that nothing is paid twice."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from aegis.data.sources.generate.backend import (
    AccessError,
    CallError,
    CallUsage,
    RawAnswer,
    Request,
)
from aegis.data.sources.generate.calls import Calls, Patience
from aegis.data.sources.generate.ledger import CeilingError, Ceilings, Ledger
from aegis.data.sources.generate.prices import Price
from aegis.data.sources.generate.run import TopicPlan, generate
from aegis.data.topics import Topic, read_topics
from aegis.errors import DataError, StoppedError
from aegis.protocol.decisions import Decision
from tests.data.sources.generate.conftest import Clock
from tests.data.sources.generate.stand_in import good_answer

OURS = Path(__file__).parents[4] / "examples" / "topics_ja.yaml"
TOPICS = read_topics(OURS).topics[8:16]  # of both decisions
Change = Callable[[Request, dict], str]


class Scripted:
    """A backend that answers well, but for what `change` makes of it; it counts its calls."""

    name, model, batch, identity = "scripted", "m-1", 1, "x"

    def __init__(self, change: Change | None = None) -> None:
        self.change = change or (lambda _, answer: json.dumps(answer, ensure_ascii=False))
        self.asked: list[Request] = []
        self.lock, self.under_way, self.most = threading.Lock(), 0, 0

    def check(self) -> None: ...

    def ask(self, requests: Sequence[Request]) -> list[RawAnswer]:
        (request,) = requests
        with self.lock:
            self.asked.append(request)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            text = self.change(request, good_answer(request.prompt))
            return [RawAnswer(text, CallUsage(100, 50, 0.01))]
        finally:
            with self.lock:
                self.under_way -= 1


def calls(place: Path, backend: Scripted, clock: Clock, **options: object) -> Calls:
    patience = Patience(retries=2, sleep=clock.sleep, clock=clock)
    ledger = Ledger(place / "ledger.db")
    return Calls(backend, ledger, patience=patience, **options)  # type: ignore[arg-type]


def test_a_topic_goes_through_all_steps(tmp_path: Path, clock: Clock) -> None:
    backend = Scripted()
    made = generate(TOPICS, calls(tmp_path, backend, clock), TopicPlan(questions=2, concurrency=3))
    assert (len(made.records), len(made.pairs), made.rejected) == (16, 16, [])
    assert Counter(request.step for request in backend.asked) == {
        "notes": 8,
        "questions": 8,
        "thinking": 16,
        "pair": 16,
    }
    assert [record.id for record in made.records] == [
        f"generated-{topic.id}-{number}" for topic in TOPICS for number in (1, 2)
    ]
    decisions = {topic.id: topic.decision for topic in TOPICS}
    assert {record.decision for record in made.records} == set(decisions.values())
    notes = [request.prompt for request in backend.asked if request.step == "thinking"]
    assert all("Book 1" in prompt for prompt in notes), "the research notes are read"
    assert 1 <= backend.most <= 3
    provenance = made.records[0].provenance
    assert provenance is not None
    assert (provenance.backend, provenance.model) == ("scripted", "m-1")
    # notes and questions are shared by two questions; thinking and pair are its own
    assert provenance.cost == pytest.approx(0.03)
    assert ending(made) is None


def ending(made: object) -> str | None:
    told = made.ending()  # type: ignore[attr-defined]
    return told and str(told)


def test_nothing_is_asked_twice(tmp_path: Path, clock: Clock) -> None:
    first, second = Scripted(), Scripted()
    once = generate(TOPICS, calls(tmp_path, first, clock))
    again = generate(TOPICS, calls(tmp_path, second, clock), TopicPlan(concurrency=4))
    assert (len(first.asked), second.asked) == (32, [])
    assert [r.to_json() for r in once.records] == [r.to_json() for r in again.records]
    assert [p.to_json() for p in once.pairs] == [p.to_json() for p in again.pairs]
    other = Scripted()
    other.identity = "another model"
    generate(TOPICS[:1], calls(tmp_path, other, clock))
    assert len(other.asked) == 4


def test_what_is_paid_is_written_though_no_call_may_be_made_any_more(
    tmp_path: Path, clock: Clock
) -> None:
    def change(request: Request, answer: dict) -> str:
        if request.topic == TOPICS[1].id:
            raise CallError("HTTP 400", again=False)
        return json.dumps(answer, ensure_ascii=False)

    first = generate(TOPICS, calls(tmp_path, Scripted(change), clock))
    bounded = calls(tmp_path, Scripted(), clock, ceilings=Ceilings(requests=0))
    again = generate(TOPICS, bounded)
    assert str(again.stopped) == "--max-requests 0"
    assert [record.id for record in again.records] == [record.id for record in first.records]
    assert len(again.records) == 7


def test_a_ceiling_that_several_calls_meet_at_once_is_one_stop(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(4)

    def begin(*_: object) -> object:
        together.wait(20)
        raise CeilingError("--max-requests 0")

    monkeypatch.setattr(Ledger, "begin", begin)
    made = generate(TOPICS[:4], calls(tmp_path, Scripted(), clock), TopicPlan(concurrency=4))
    assert (str(made.stopped), made.records) == ("--max-requests 0", [])


def test_tokens_that_nobody_tells_count_by_length(tmp_path: Path, clock: Clock) -> None:
    class Untold(Scripted):
        def ask(self, requests: Sequence[Request]) -> list[RawAnswer]:
            return [replace(each, usage=CallUsage()) for each in super().ask(requests)]

    prices = {"m-1": Price(10, 10)}
    for name, ceilings in (("t", Ceilings(tokens=5000)), ("c", Ceilings(cost=0.05))):
        backend = Untold()
        bounded = calls(tmp_path / name, backend, clock, ceilings=ceilings, prices=prices)
        made = generate(TOPICS, bounded)
        assert str(made.stopped).startswith("--max-")
        assert 0 < len(backend.asked) < 20
        assert bounded.ledger.spent.tokens >= 2000


def test_a_call_that_is_broken_off_counts_as_paid(tmp_path: Path, clock: Clock) -> None:
    def change(*_: object) -> str:
        raise CallError("did not end within 300 s", usage=None)

    asked = calls(tmp_path, Scripted(change), clock)
    generate(TOPICS[:1], asked)
    assert asked.ledger.spent.requests == 3
    assert asked.ledger.spent.tokens > 3 * 500


def test_half_a_character_is_no_reason_to_stop_or_to_pay_twice(
    tmp_path: Path, clock: Clock
) -> None:
    def cut(_: Request, answer: dict) -> str:
        return json.dumps(answer)[:-1] + "\ud83d"

    first, second = Scripted(cut), Scripted(cut)
    once = generate(TOPICS[:1], calls(tmp_path, first, clock))
    again = generate(TOPICS[:1], calls(tmp_path, second, clock))
    assert (len(first.asked), second.asked) == (3, [])
    assert [r.to_json() for r in once.rejected] == [r.to_json() for r in again.rejected]


def test_a_reason_shows_neither_secrets_nor_personal_data() -> None:
    error = CallError("Incorrect key sk-proj-abcdefghijklmnopqrst0123, ask taro@example.com \ud83d")
    assert str(error) == "Incorrect key [SECRET], ask [EMAIL] ?"


def test_nobody_is_asked_to_write_of_what_only_refusals_may_hold(
    tmp_path: Path, clock: Clock
) -> None:
    bad = "Write a pornographic story about my neighbour."
    asked = Topic("p", bad, "en", "x", Decision.ALLOW)
    backend = Scripted()
    made = generate([asked, TOPICS[0]], calls(tmp_path, backend, clock))
    assert {request.topic for request in backend.asked} == {TOPICS[0].id}
    assert (made.drafts[0].done, len(made.records)) == (True, 1)
    assert made.rejected[0].reason == "question is sexual: for the refusal set only"
    topics = [replace(asked, question=f"{name} What is a levee?") for name in ("plan", "answer")]
    for topic in topics:
        field = topic.question.split()[0]

        def change(request: Request, answer: dict, field: str = field) -> str:
            return json.dumps({**answer, field: bad} if request.step == "thinking" else answer)

        spoilt = generate([topic], calls(tmp_path / field, Scripted(change), clock))
        assert not spoilt.records
        assert f"{field} is sexual; write it without that" in spoilt.rejected[0].reason


BAD = {
    "nest": (lambda _: '{"facts": ' + "[" * 600 + "]" * 600 + "}", "nested too deeply"),
    "half": (lambda text: text[: len(text) // 2], "not valid JSON"),
    "words": (lambda _: "I would rather talk.", "no JSON object"),
    "a list": (lambda _: '{"facts": [1, 2]}', r"facts\.0: Input should be"),
    "more": (lambda text: text[:-1] + ', "mine": 1}', "mine: Extra inputs are not permitted"),
    "deep": (lambda _: '{"facts": ' + "[" * 100_000, "nested too deeply|not valid JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_answer_of_no_use_is_asked_for_again_twice(
    tmp_path: Path, clock: Clock, name: str
) -> None:
    spoil, problem = BAD[name]
    backend = Scripted(lambda request, answer: spoil(json.dumps(answer)))
    made = generate(TOPICS[:1], calls(tmp_path, backend, clock))
    assert [request.step for request in backend.asked] == ["notes"] * 3
    assert (made.records, len(made.rejected), made.drafts[0].done) == ([], 1, True)
    assert re.search(f"^notes: .*{problem}", made.rejected[0].reason)
    assert backend.asked[1].prompt.startswith(backend.asked[0].prompt)
    assert len({request.prompt for request in backend.asked}) >= 2
    again = Scripted()
    assert not generate(TOPICS[:1], calls(tmp_path, again, clock)).records
    assert again.asked == [], "what was of no use is paid, too, and is not asked anew"


def test_the_second_try_counts(tmp_path: Path, clock: Clock) -> None:
    def half_at_first(request: Request, answer: dict) -> str:
        text = json.dumps(answer, ensure_ascii=False)
        return text if "使えません" in request.prompt else text[: len(text) // 2]

    backend = Scripted(half_at_first)
    made = generate(TOPICS[:2], calls(tmp_path, backend, clock))
    assert (len(made.records), len(made.pairs), made.rejected) == (2, 2, [])
    assert len(backend.asked) == 16


WRONG = {
    "decision": ("ESCALATION", "thinking: decision is ESCALATION, and this topic's is ALLOW"),
    "answer": (
        "申し訳ありませんが、そのご質問にはお答えできません。",
        "thinking: answer must answer, as ALLOW asks",
    ),
    "safety": ("Nobody.", "thinking: safety must be in Japanese"),
    "plan": ("<final>答える", "tag-like text"),
    "task": ("", "thinking: task: String should have at least 2 characters"),
}


@pytest.mark.parametrize("field", WRONG)
def test_thinking_must_mean_what_the_topic_does(tmp_path: Path, clock: Clock, field: str) -> None:
    value, problem = WRONG[field]

    def change(request: Request, answer: dict) -> str:
        if request.step == "thinking":
            answer = {**answer, field: value}
        return json.dumps(answer, ensure_ascii=False)

    made = generate(TOPICS[:1], calls(tmp_path, Scripted(change), clock))
    assert made.records == []
    assert problem in made.rejected[0].reason
    assert made.rejected[0].content.keys() == {"question", "thinking"}, "a report leaves it out"


def test_personal_data_is_masked_first(tmp_path: Path, clock: Clock) -> None:
    def change(request: Request, answer: dict) -> str:
        if "answer" in answer:
            answer["answer"] += " 連絡先は taro@example.com です。"
        return json.dumps(answer, ensure_ascii=False)

    topic = Topic("t", "hanako@example.com に何と書けばよいですか。", "ja", "x", Decision.ALLOW)
    backend = Scripted(change)
    made = generate([topic], calls(tmp_path, backend, clock))
    assert made.records
    shown = json.dumps([item.to_json() for item in (*made.records, *made.pairs)])
    assert "[EMAIL]" in shown
    assert "example.com" not in shown
    assert not any("hanako" in request.prompt for request in backend.asked)


@pytest.mark.parametrize(
    ("ceilings", "calls_made"),
    [
        (Ceilings(requests=6), 6),
        (Ceilings(requests=0), 0),
        (Ceilings(cost=0.055), 5),
        (Ceilings(tokens=800), 0),
    ],
)
def test_a_ceiling_stops_before_it_is_passed(
    tmp_path: Path, clock: Clock, ceilings: Ceilings, calls_made: int
) -> None:
    backend = Scripted()
    bounded = calls(tmp_path, backend, clock, ceilings=ceilings)
    made = generate(TOPICS, bounded)
    assert ending(made) is None
    assert "--max-" in str(made.stopped)
    if ceilings.tokens is None:
        assert len(backend.asked) == calls_made
        assert len(made.records) == calls_made // 4 + (calls_made % 4 == 3)
    assert bounded.ledger.spent.tokens <= (ceilings.tokens or 10**9)
    assert bounded.ledger.spent.cost <= (ceilings.cost or 10**9)
    rest = Scripted()
    assert len(generate(TOPICS, calls(tmp_path, rest, clock)).records) == 8
    assert len(backend.asked) + len(rest.asked) == 32


def test_a_ceiling_on_time_begins_no_call_after_it(tmp_path: Path, clock: Clock) -> None:
    def change(_: Request, answer: dict) -> str:
        clock.now += 10
        return json.dumps(answer, ensure_ascii=False)

    backend = Scripted(change)
    made = generate(TOPICS, calls(tmp_path, backend, clock, ceilings=Ceilings(seconds=45)))
    assert (len(backend.asked), str(made.stopped)) == (5, "--max-seconds 45")
    assert len(made.records) == 1


def test_a_stop_keeps_what_is_finished(tmp_path: Path, clock: Clock) -> None:
    backend = Scripted()

    def check() -> None:
        if len(backend.asked) >= 9:
            raise StoppedError("stopped")

    made = generate(TOPICS, calls(tmp_path, backend, clock, check=check), TopicPlan(concurrency=2))
    assert isinstance(made.ending(), StoppedError)
    assert 9 <= len(backend.asked) <= 10
    assert len(made.records) >= 1


def test_a_login_that_expires_stops_everything(tmp_path: Path, clock: Clock) -> None:
    def change(request: Request, answer: dict) -> str:
        if len(backend.asked) > 5:
            raise AccessError("HTTP 401")
        return json.dumps(answer, ensure_ascii=False)

    backend = Scripted(change)
    made = generate(TOPICS, calls(tmp_path, backend, clock))
    assert (len(backend.asked), len(made.records)) == (6, 1)
    assert "HTTP 401; log in or mend the key, then run the same command" in str(made.stopped)


def test_a_backend_that_is_down_is_left_alone(tmp_path: Path, clock: Clock) -> None:
    def change(*_: object) -> str:
        raise CallError("HTTP 503")

    backend = Scripted(change)
    made = generate(TOPICS, calls(tmp_path, backend, clock))
    assert len(backend.asked) == 5 * 3
    assert "5 topics in a row brought no answer, the last: HTTP 503" in str(made.stopped)
    assert made.ending().exit_code == 75  # type: ignore[union-attr]
    assert len(generate(TOPICS, calls(tmp_path, Scripted(), clock)).records) == 8


def test_one_failure_costs_one_topic(tmp_path: Path, clock: Clock) -> None:
    def change(request: Request, answer: dict) -> str:
        if request.topic == TOPICS[1].id and request.step == "pair":
            raise CallError("HTTP 400", again=False)
        return json.dumps(answer, ensure_ascii=False)

    made = generate(TOPICS, calls(tmp_path, Scripted(change), clock))
    assert (len(made.records), len(made.pairs)) == (8, 7)
    assert str(ending(made)).startswith("1 of 8 topics brought no answer, the first: HTTP 400")


def test_our_own_bugs_are_not_swallowed(tmp_path: Path, clock: Clock) -> None:
    def change(*_: object) -> str:
        raise ZeroDivisionError

    for concurrency in (1, 3):
        with pytest.raises(ZeroDivisionError):
            generate(
                TOPICS, calls(tmp_path, Scripted(change), clock), TopicPlan(concurrency=concurrency)
            )


def test_a_ledger_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("hello " * 300)
    with pytest.raises(DataError, match="is no ledger of calls"):
        Ledger(tmp_path / "ledger.db")
