from __future__ import annotations

import pytest

from aegis.engine.answer import answer
from aegis.engine.local_thinker import LocalThinker
from aegis.engine.response_grammar import Limits, Sampling
from aegis.engine.verdict import CalibratedHead
from aegis.errors import DataError
from aegis.model.heads import DecisionHead
from aegis.protocol.decisions import Decision
from tests.model.test_tags import tagged

LIMITS = Limits(section=5, final=6)


def local_thinker(decision: Decision) -> LocalThinker:
    """A tiny random model whose head always says the same."""
    adapted, tokenizer, _ = tagged()
    head = DecisionHead(32)
    head.linear.bias.data[int(decision)] = 9.0
    return LocalThinker(
        adapted.base, tokenizer, CalibratedHead(head), gates=adapted.all_gates(), name="tiny"
    )


def test_a_whole_answer_from_a_random_model_says_nothing_private() -> None:
    given = answer(local_thinker(Decision.ALLOW), "hello", Sampling(LIMITS))
    said = ("final", "decision", "probabilities", "rule", "escalated", "outcome")
    assert set(given.to_json()) == {*said}
    again = answer(local_thinker(Decision.ALLOW), "hello", Sampling(LIMITS))
    assert again == given
    assert answer(local_thinker(Decision.ALLOW), "hello", Sampling(LIMITS, seed=1)) != given


def test_a_prompt_must_leave_room_for_the_answer() -> None:
    with pytest.raises(DataError, match="shorten it"):
        answer(local_thinker(Decision.ALLOW), "x" * 500, Sampling(LIMITS))
