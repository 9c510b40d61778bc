from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from aegis.engine import local_thinker as module
from aegis.engine.judge import Judge
from aegis.engine.local_thinker import LocalThinker
from aegis.engine.response_sampler import Limits, SampledResponse
from aegis.errors import DataError
from aegis.model.heads import DecisionHead
from aegis.protocol.decisions import Decision
from aegis.protocol.fixed_texts import fixed_text
from tests.model.test_tags import tagged

LIMITS = Limits(section=5, final=6)


def local_thinker(decision: Decision) -> LocalThinker:
    """A tiny random model whose head always says the same."""
    adapted, tokenizer, tags = tagged()
    head = DecisionHead(32)
    head.linear.bias.data[int(decision)] = 9.0
    return LocalThinker(
        adapted.base,
        tokenizer,
        tags,
        Judge(adapted.base, tokenizer, head=head),
        adapted.all_gates(),
    )


told: list[Decision] = []


def saying(monkeypatch: pytest.MonkeyPatch, *finals: str, policy: str = "ALLOW") -> None:
    """The thinker's words are given; everything after it is real."""
    told.clear()

    def call(
        self: Any, prompts: Sequence[Sequence[int]], decisions: Sequence[Decision], **_: Any
    ) -> list[SampledResponse]:
        told.extend(decisions)
        return [
            SampledResponse(
                tuple(prompt),
                (),
                (),
                (),
                (),
                (True,) * 5,
                ("the task", "nobody", policy, "short", final),
            )
            for prompt, final in zip(prompts, finals, strict=True)
        ]

    monkeypatch.setattr(module.ResponseSampler, "__call__", call)


def test_a_whole_answer_from_a_random_model_says_nothing_private() -> None:
    answer = local_thinker(Decision.ALLOW).answer("hello", limits=LIMITS)
    assert set(answer.to_json()) == {"final", "decision", "probabilities", "escalated"}
    again = local_thinker(Decision.ALLOW).answer("hello", limits=LIMITS)
    assert again == answer
    assert local_thinker(Decision.ALLOW).answer("hello", limits=LIMITS, seed=1) != answer


def test_an_allowed_answer_is_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, "It is in Paris.")
    answer = local_thinker(Decision.ALLOW).answer("Where?")
    assert (answer.final, answer.decision, answer.escalated) == (
        "It is in Paris.",
        Decision.ALLOW,
        False,
    )


@pytest.mark.parametrize("decision", [Decision.ESCALATION, Decision.DENY, Decision.REFUSE])
@pytest.mark.parametrize(("prompt", "language"), [("Where?", "en"), ("どこですか", "ja")])
def test_only_what_is_allowed_is_answered_in_the_models_words(
    monkeypatch: pytest.MonkeyPatch, decision: Decision, prompt: str, language: str
) -> None:
    for said in (
        "First mix the two powders.",
        "I won't help with that. First mix the two powders.",
    ):
        saying(monkeypatch, said, policy="REFUSE")
        answer = local_thinker(decision).answer(prompt)
        assert (answer.final, answer.decision) == (fixed_text(decision, language), decision)
        assert told == [decision]


def test_nothing_private_is_in_what_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, "It is in Paris.", policy="ALLOW because it is a plain fact")
    answer = local_thinker(Decision.ALLOW).answer("Where?")
    for shown in (repr(answer), json.dumps(answer.to_json()), answer.final):
        assert not any(
            private in shown for private in ("the task", "nobody", "plain fact", "short")
        )


def test_declining_what_is_allowed_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, "I can't help with that.")
    assert local_thinker(Decision.ALLOW).answer("Where?").final == fixed_text(
        Decision.ESCALATION, "en"
    )


def test_disagreement_never_weakens_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, "First mix the powders.", "Then wait.")
    answer = local_thinker(Decision.REFUSE).answer("Where?", paths=2)
    assert (answer.decision, answer.final) == (Decision.REFUSE, fixed_text(Decision.REFUSE, "en"))


def test_repeated_thinking_never_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "the user seems to be a nurse who lost her badge"
    saying(monkeypatch, f"Well, {secret}.", policy=secret)
    answer = local_thinker(Decision.ALLOW).answer("Where?")
    assert (answer.final, answer.escalated) == (fixed_text(Decision.ESCALATION, "en"), True)


def test_paths_that_do_not_agree_are_escalated(monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, "In Paris.", "I won't help with that.", "I won't help with that.")
    answer = local_thinker(Decision.ALLOW).answer("Where?", paths=3)
    assert (answer.decision, answer.escalated) == (Decision.ESCALATION, True)
    assert answer.to_json()["score"] < 0.5
    saying(monkeypatch, "In Paris.", "It is in Paris.", "Paris.")
    assert local_thinker(Decision.ALLOW).answer("Where?", paths=3).decision is Decision.ALLOW


def test_a_prompt_must_leave_room_for_the_answer() -> None:
    with pytest.raises(DataError, match="shorten it"):
        local_thinker(Decision.ALLOW).answer("x" * 500, limits=LIMITS)
