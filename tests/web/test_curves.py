from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.web.curves import HEIGHT, MOST_POINTS, WIDTH, Curve


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5_000), st.integers())
def test_a_curve_stays_small_and_keeps_its_extremes_and_its_ends(count: int, seed: int) -> None:
    rng, curve = random.Random(seed), Curve()
    values = [rng.gauss(0, 1) for _ in range(count)]
    for step, value in enumerate(values):
        curve.add(step, value)
    assert len(curve.points) <= MOST_POINTS
    assert curve.bounds == (min(values), max(values))
    assert curve.points[0] == (0, values[0])
    assert curve.points[-1] == (count - 1, values[-1])
    assert all(values[step] == value for step, value in curve.points)
    assert [step for step, _ in curve.points] == sorted({step for step, _ in curve.points})


def test_steps_that_are_done_again_replace_the_first_ones() -> None:
    curve = Curve()
    for step, value in ((1, 5.0), (2, 6.0), (3, 7.0), (2, 1.0), (3, 2.0)):
        curve.add(step, value)
    assert curve.points == [(1, 5.0), (2, 1.0), (3, 2.0)]


def test_what_is_no_number_is_counted() -> None:
    curve = Curve()
    for step, value in enumerate((1.0, None, math.nan, math.inf, 2.0)):
        curve.add(step, value)
    assert (curve.missing, curve.points) == (3, [(0, 1.0), (4, 2.0)])


def test_the_line_stays_within_the_picture() -> None:
    curve = Curve()
    for step, value in ((10, -3.0), (11, 4.0), (20, 0.5)):
        curve.add(step, value)
    points = [tuple(map(float, p.split(","))) for p in curve.line((10, 20), (-3.0, 4.0)).split()]
    assert points[0] == (8.0, HEIGHT - 8.0)
    assert points[1][1] == 8.0
    assert points[2][0] == WIDTH - 8.0
    flat = Curve()
    flat.add(1, 2.0)
    assert flat.line((1, 1), (2.0, 2.0)) == f"8.0,{HEIGHT - 8}.0 8.0,{HEIGHT - 8}.0"
