from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from aegis.tune.comparison import compare_seeds

VALUES = st.lists(
    st.tuples(st.floats(-12, 12), st.floats(-12, 12)), min_size=2, max_size=12
).filter(lambda rows: float(np.std([b - a for a, b in rows])) > 1e-6)


@given(VALUES)
def test_the_interval_is_that_of_scipys_paired_test(rows: list[tuple[float, float]]) -> None:
    default, best = zip(*rows, strict=True)
    compared = compare_seeds(range(len(rows)), default, best)
    interval = ttest_rel(best, default).confidence_interval(0.95)
    assert compared.interval == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    turned = compare_seeds(range(len(rows)), best, default)
    assert turned.difference == pytest.approx(-compared.difference)


@pytest.mark.parametrize(
    ("best", "words"),
    [
        ((2.0, 2.1, 2.2), "beat the config's own beyond noise"),
        ((0.0, 0.1, 0.2), "are worse than"),
        ((0.9, 1.3, 1.2), "Cannot tell"),
    ],
)
def test_it_is_said_plainly(best: tuple[float, ...], words: str) -> None:
    sentence = compare_seeds((1, 2, 3), (1.0, 1.1, 1.2), best).sentence
    assert words in sentence
    assert "3 seeds" in sentence
