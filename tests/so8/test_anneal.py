from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.so8 import Schedule, alpha_at, opening
from aegis.so8.anneal import GOLDEN_RATIO, Shape

SHAPES: tuple[Shape, ...] = ("sigmoid", "linear", "cosine")


@pytest.mark.parametrize("shape", SHAPES)
@given(st.integers(0, 50), st.integers(0, 500))
def test_both_ends_are_exact_and_alpha_never_falls(
    shape: Shape, warmup: int, annealing: int
) -> None:
    schedule = Schedule(annealing, warmup, shape)
    values = [alpha_at(schedule, step) for step in range(warmup + annealing + 3)]
    assert values[warmup + annealing :] == [GOLDEN_RATIO] * 3
    if annealing:
        assert values[: warmup + 1] == [-5.0] * (warmup + 1)
    assert all(before <= after for before, after in itertools.pairwise(values))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_middle_is_half_way(shape: Shape) -> None:
    assert alpha_at(Schedule(100, 10, shape), 60) == pytest.approx((-5 + GOLDEN_RATIO) / 2)


def test_the_opening_does_not_overflow() -> None:
    assert opening(-1e4) == 0.0
    assert opening(1e4) == 1.0
    assert opening(0) == 0.5


def test_impossible_schedules_are_told() -> None:
    with pytest.raises(ValueError, match="steps must be >= 0"):
        Schedule(-1)
    with pytest.raises(ValueError, match="steepness must be > 0"):
        Schedule(1, steepness=0)
