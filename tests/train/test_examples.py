"""Which prompts an update asks."""

from __future__ import annotations

import pytest

from aegis.model.tags import add_tags, known_tags
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import PrivateText, Thinking
from aegis.train.examples import mixed_order, prompt_plan, response_ids
from tests.conftest import byte_tokenizer, tiny_model


def test_every_prompt_is_asked_once_an_epoch() -> None:
    plan = prompt_plan([0] * 5, updates=5, asked=2, seed=1)
    assert [len(row) for row in plan] == [2] * 5
    flat = [index for row in plan for index in row]
    assert sorted(flat[:5]) == sorted(flat[5:]) == list(range(5))
    assert plan != prompt_plan([0] * 5, updates=5, asked=2, seed=2)


@pytest.mark.parametrize("seed", range(5))
def test_every_stretch_of_prompts_asks_of_all_kinds(seed: int) -> None:
    kinds = [0] * 30 + [1] * 60 + [2] * 30
    order = mixed_order(kinds, seed=seed, epoch=0)
    assert sorted(order) == list(range(120)) != order
    for start in range(0, 120, 8):
        found = [kinds[index] for index in order[start : start + 8]]
        assert all(abs(found.count(kind) - share) <= 1 for kind, share in enumerate((2, 4, 2)))
    assert order != mixed_order(kinds, seed=seed, epoch=1)


def test_a_decision_that_is_a_token_stands_before_the_thinking() -> None:
    thinking = Thinking(*map(PrivateText, "abcd"), public="Hi")
    rows = []
    for decisions in (False, True):
        tokenizer = byte_tokenizer()
        add_tags(tokenizer, tiny_model(), decisions=decisions)
        rows.append(response_ids(tokenizer, thinking, Decision.DENY, section_weight=0.5))
    (plain, weights), (ids, others) = rows
    assert ids == (known_tags(tokenizer).decisions[2], *plain)
    assert others == (0.5, 0.0, *weights[1:])  # what opens the thinking is the engine's to write
