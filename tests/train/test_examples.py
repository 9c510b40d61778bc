"""Which prompts an update asks."""

from __future__ import annotations

import pytest

from aegis.train.examples import mixed_order, prompt_plan


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
