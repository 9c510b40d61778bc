from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap, false_discovery_control, norm, ttest_rel

from aegis.errors import DataError
from aegis.evaluate.paired import (
    FlipTest,
    bca,
    cluster_labels,
    compare_outcomes,
    holm,
    mcnemar_power,
    paired_test,
    smallest_change,
    t_power,
)

DRAWS = 2000
exactly = functools.partial(pytest.approx, rel=1e-9, abs=1e-12)


def outcomes(n: int, *, gain: float, lose: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    base = (rng.random(n) < 0.5).astype(float)
    flips = rng.random(n) < np.where(base == 1, 2 * lose, 2 * gain)
    return base, np.where(flips, 1 - base, base)


def in_clusters(
    seed: int, sizes: Sequence[int] = (2, 3, 4, 5, 6, 7, 8, 8, 5, 4) * 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of two equally good models, whose luck is shared by the items of a cluster."""
    rng, count = np.random.default_rng(seed), len(sizes)
    labels = np.repeat(np.arange(count), sizes)
    base, candidate = (
        (rng.normal(size=count)[labels] + rng.normal(size=len(labels)) > 0).astype(float)
        for _ in range(2)
    )
    return base, candidate, labels


def test_it_equals_scipy() -> None:
    base, candidate = outcomes(400, gain=0.08, lose=0.12)
    result = compare_outcomes(base, candidate)
    expected = ttest_rel(candidate, base)
    assert (result.t_statistic, result.p_t) == exactly(tuple(expected[:2]))
    shifted = compare_outcomes(base, candidate + 0.25)
    interval = ttest_rel(candidate + 0.25, base).confidence_interval()
    assert shifted.test == "paired t"
    assert shifted.interval_points == exactly([100 * end for end in interval])


def test_bca_equals_scipy_on_the_same_resamples() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    drawn: Any = bootstrap((values,), np.mean, rng=np.random.default_rng(1), n_resamples=999)
    left_out = np.array([np.delete(values, place).mean() for place in range(40)])
    ours = bca(drawn.bootstrap_distribution, left_out, values.mean(), 0.05)
    assert ours == exactly(tuple(drawn.confidence_interval))
    assert bca(np.ones(9), left_out, 0.0, 0.05) == (1, 1)


def test_the_bootstrap_agrees_with_the_tests_that_it_stands_beside() -> None:
    for labels in (None, [str(number // 3) for number in range(900)]):
        result = compare_outcomes(*outcomes(900, gain=0.08, lose=0.12), labels)
        assert result.bootstrap_points == pytest.approx(result.interval_points, abs=0.35)


def test_it_equals_statsmodels() -> None:
    from statsmodels.regression.linear_model import OLS
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.power import TTestPower
    from statsmodels.stats.weightstats import ttost_paired

    base, candidate = outcomes(400, gain=0.08, lose=0.12)
    result: Any = None
    table = [[np.sum((base == i) & (candidate == j)) for j in (1, 0)] for i in (1, 0)]
    test = paired_test(base, candidate)
    assert isinstance(test, FlipTest)
    result = mcnemar(table, exact=True)
    assert test.p == exactly(result.pvalue)
    result = mcnemar(table, exact=False, correction=False)
    assert test.score(0) ** 2 == exactly(result.statistic)

    labels = np.arange(400) // 7
    fit = OLS(candidate - base, np.ones(400)).fit(
        cov_type="cluster", cov_kwds={"groups": labels}, use_t=True
    )
    clustered = compare_outcomes(base, candidate, labels.astype(str).tolist())
    assert (clustered.test, clustered.clusters) == ("clustered t", 58)
    assert clustered.p_cr1 == exactly(fit.pvalues[0])
    labels = np.arange(400) // 8
    fit = OLS(candidate - base, np.ones(400)).fit(
        cov_type="cluster", cov_kwds={"groups": labels}, use_t=True
    )
    even = compare_outcomes(base, candidate, labels.astype(str).tolist())
    assert even.p == exactly(fit.pvalues[0])
    assert even.interval_points == exactly(100 * fit.conf_int()[0])

    rng = np.random.default_rng(1)
    scores = rng.random(60)
    other = np.clip(scores + rng.normal(0.01, 0.1, 60), 0, 1)
    margin = ttost_paired(other, scores, -0.01, 1)[1][1]
    plain = compare_outcomes(scores, other, margin_points=1)
    assert plain.p_noninferior == exactly(margin)
    power = TTestPower().power(effect_size=0.3, nobs=60, alpha=0.05, alternative="two-sided")
    assert t_power(1 / 60**0.5, 59, 0.3) == exactly(power)

    p_values = rng.random(57) ** 3
    for method, ours in (
        ("holm", holm(p_values.tolist())),
        ("fdr_bh", false_discovery_control(p_values)),
    ):
        assert ours == exactly(multipletests(p_values, method=method)[1])


@functools.cache
def flip_p(n: int, gained: int, lost: int) -> float:
    return FlipTest(n, gained, lost).p


def continuous_null(seed: int) -> float:
    rng = np.random.default_rng(seed)
    first, second = (rng.beta(2, 2, 40) for _ in range(2))
    return paired_test(first, second).p


def clustered_null(seed: int) -> float:
    return paired_test(*in_clusters(seed)).p


def subjects_null(seed: int) -> float:
    sizes = [*[11] * 10, *[20] * 8, *[40] * 4, 90, 150]  # as unequal as MMLU's subjects
    return paired_test(*in_clusters(seed, sizes)).p


def binary_null(seed: int) -> float:
    gained, lost, _ = np.random.default_rng(seed).multinomial(150, [0.07, 0.07, 0.86])
    return flip_p(150, int(gained), int(lost))


@pytest.mark.parametrize("null", [binary_null, continuous_null, clustered_null, subjects_null])
def test_equal_models_are_rarely_told_apart(null: Callable[[int], float]) -> None:
    assert np.mean([null(seed) <= 0.05 for seed in range(DRAWS)]) <= 0.06


def test_clusters_matter() -> None:
    wrong = [paired_test(*in_clusters(seed)[:2]).p <= 0.05 for seed in range(400)]
    assert np.mean(wrong) > 0.08


def test_the_margin_is_rarely_held_by_a_model_that_lost_it() -> None:
    rng = np.random.default_rng(5)
    draws = rng.multinomial(600, [0.05, 0.06, 0.89], size=DRAWS)
    held = [FlipTest(600, int(g), int(lost)).p_noninferior(0.01) <= 0.025 for g, lost, _ in draws]
    assert np.mean(held) <= 0.03


@pytest.mark.parametrize(("n", "gained", "lost"), [(300, 30, 25), (2376, 200, 210), (60, 2, 3)])
def test_power_at_the_smallest_change_is_as_promised_for_flips(
    n: int, gained: int, lost: int
) -> None:
    change = smallest_change(FlipTest(n, gained, lost))
    assert change is not None
    discordance = max((gained + lost) / n, change)
    shares = [(discordance + change) / 2, (discordance - change) / 2, 1 - discordance]
    draws = np.random.default_rng(2).multinomial(n, shares, size=DRAWS)
    found = np.mean([flip_p(n, int(up), int(down)) <= 0.05 for up, down, _ in draws])
    assert found == pytest.approx(0.8, abs=0.03)


def test_power_at_the_smallest_change_is_as_promised_for_means() -> None:
    rng, n = np.random.default_rng(3), 50
    sample = rng.normal(0.5, 0.1, n)
    change = smallest_change(paired_test(sample, sample + rng.normal(0, 0.1, n)))
    assert change is not None
    draws = rng.normal(change, 0.1, (DRAWS, n))
    scale = paired_test(np.zeros(n), draws[0]).error * n**0.5 / 0.1  # of the one sample above
    assert scale == pytest.approx(1, abs=0.3)
    true = t_power(0.1 / n**0.5, n - 1, change)
    found = np.mean([paired_test(np.zeros(n), row).p <= 0.05 for row in draws])
    assert found == pytest.approx(true, abs=0.03)


def test_tango_covers_and_mirrors() -> None:
    test = FlipTest(80, 9, 4)
    low, high = test.interval(0.05)
    mirrored = FlipTest(80, 4, 9).interval(0.05)
    assert (-high, -low) == exactly(mirrored)
    assert (test.score(low), -test.score(high)) == pytest.approx((norm.isf(0.025),) * 2, rel=1e-6)
    assert FlipTest(5, 5, 0).interval(0.05)[1] == 1
    assert FlipTest(5, 0, 5).interval(0.05)[0] == -1
    draws = np.random.default_rng(4).multinomial(100, [0.1, 0.05, 0.85], size=DRAWS)
    ends = [FlipTest(100, int(g), int(lost)).interval(0.05) for g, lost, _ in draws[:500]]
    assert np.mean([low <= 0.05 <= high for low, high in ends]) == pytest.approx(0.95, abs=0.03)


def test_a_comparison_says_what_it_needs() -> None:
    base, candidate = outcomes(400, gain=0.08, lose=0.12)
    result = compare_outcomes(base, candidate, margin_points=1.0)
    assert result.gained - result.lost == pytest.approx(result.delta_points * 4)
    assert result.relative == pytest.approx((result.candidate - result.base) / result.base)
    assert result.mde_points == pytest.approx(6.2, abs=0.8)
    assert 10_000 < result.needed < 20_000
    wider = compare_outcomes(base, candidate, margin_points=10.0)
    assert wider.needed < 400
    assert wider.p_noninferior < 0.025
    few = compare_outcomes(np.zeros(3), np.array([0.0, 0.0, 1.0]))
    assert (few.p, few.mde_points, few.relative) == (1.0, None, None)


def test_the_rarer_flips_the_more_exact_its_power() -> None:
    assert mcnemar_power(5, 1.0, 1.0) == 0  # five flips one way have p = 0.0625
    assert mcnemar_power(6, 1.0, 1.0) == pytest.approx(1)


@pytest.mark.parametrize(
    ("base", "candidate", "clusters", "reason"),
    [
        ([1], [0], None, "needs 2 items or more, got 1"),
        ([], [], None, "needs 2 items or more, got 0"),
        ([1, 0, 1], [1, 0, 1], None, "equal on all 3 items"),
        ([0.1, 0.2], [0.2, 0.3], None, "changes alike"),
        ([1, 0, 1], [1, 1, 1], ["a", "a", "a"], "in one cluster"),
        ([1, np.nan], [1, 0], None, "not a finite number"),
    ],
)
def test_what_cannot_be_tested_is_said(
    base: list[float], candidate: list[float], clusters: list[str] | None, reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        compare_outcomes(np.array(base), np.array(candidate), clusters)


def test_clusters_of_one_are_none() -> None:
    assert cluster_labels(["a", "b"]) is None
    assert cluster_labels(None) is None
    assert cluster_labels(["b", "a", "b"]) == pytest.approx([1, 0, 1])


def test_every_item_right_only_with_the_candidate() -> None:
    result = compare_outcomes(np.zeros(12), np.ones(12))
    assert (result.t_statistic, result.delta_points, result.gained) == (None, 100, 12)
    assert result.p == pytest.approx(2 / 2**12)
    assert result.bootstrap_points == (100, 100)
