"""Paired statistics: what two models score on the same items, and what may be said about it.

Outcomes are scores of single items, 0 to 1. One test decides: exact McNemar where every outcome is
0 or 1, the paired t-test elsewhere, the t-test over clusters where items hang together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, nct, norm, t, ttest_rel

from aegis.errors import DataError

POWER = 0.8
_RESAMPLES, _BATCH = 2000, 100
Interval = tuple[float, float]


class PairedTest(Protocol):
    """A test of a mean change over items; changes are shares of the outcome's scale."""

    @property
    def name(self) -> str: ...

    @property
    def p(self) -> float:
        """Two-sided, of no change."""
        ...

    @property
    def error(self) -> float:
        """Standard error of the change where there is none."""
        ...

    def interval(self, alpha: float) -> Interval: ...

    def p_noninferior(self, margin: float) -> float:
        """Return the one-sided p-value of a loss of the margin or more."""
        ...

    def power(self, change: float, alpha: float) -> float:
        """Return how often a true change of this size, not negative, is found."""
        ...


@dataclass(frozen=True)
class FlipTest:
    """The exact McNemar test of outcomes that are 0 or 1, with Tango's score interval.

    Args:
        n: items.
        gained, lost: items on which the candidate alone, or the base alone, is right.
    """

    n: int
    gained: int
    lost: int
    name: str = "exact McNemar"

    @property
    def p(self) -> float:
        flips = self.gained + self.lost
        return float(binomtest(self.gained, flips).pvalue) if flips else 1.0

    @property
    def error(self) -> float:
        return math.sqrt(self.gained + self.lost) / self.n

    def interval(self, alpha: float) -> Interval:
        delta, reach = (self.gained - self.lost) / self.n, float(norm.isf(alpha / 2))

        def end(side: int) -> float:
            edge = -side * (1 - 1e-9)
            if side * (delta - edge) <= 0 or side * self.score(edge) < reach:
                return float(-side)
            return _root(lambda change: self.score(change) - side * reach, edge, delta)

        return end(1), end(-1)

    def p_noninferior(self, margin: float) -> float:
        return float(norm.sf(self.score(-margin)))

    def power(self, change: float, alpha: float) -> float:
        discordance = max((self.gained + self.lost) / self.n, change)
        return mcnemar_power(self.n, discordance, change, alpha)

    def score(self, change: float) -> float:
        """Return z of the hypothesis that the true difference of the two shares is `change`.

        Source:
            Tango, Equivalence test and confidence interval for the difference in proportions for
            the paired-sample design, 1998.
        """
        n, flips, distance = self.n, self.gained + self.lost, self.gained - self.lost
        linear = (2 * n - distance) * change - flips
        root = math.sqrt(max(linear**2 + 8 * n * self.lost * change * (1 - change), 0))
        variance = n * ((root - linear) / (2 * n) + change * (1 - change))
        excess = distance - n * change
        if variance > 0:
            return excess / math.sqrt(variance)
        return math.copysign(math.inf, excess) if excess else 0.0


@dataclass(frozen=True)
class MeanTest:
    """A t-test of a mean change, given its standard error and the degrees of freedom of that."""

    name: str
    change: float
    error: float
    df: float

    @property
    def p(self) -> float:
        return float(2 * t.sf(abs(self.change) / self.error, self.df))

    def interval(self, alpha: float) -> Interval:
        reach = float(t.isf(alpha / 2, self.df)) * self.error
        return self.change - reach, self.change + reach

    def p_noninferior(self, margin: float) -> float:
        return float(t.sf((self.change + margin) / self.error, self.df))

    def power(self, change: float, alpha: float) -> float:
        return t_power(self.error, self.df, change, alpha)


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same items; a point is a hundredth of the outcome's scale.

    Args:
        clusters: how many, where items hang together.
        base, candidate: mean outcomes.
        relative: change as a share of the base's outcome; None where that is 0.
        error_points: standard error of the change.
        test: the one whose p and interval decide.
        bootstrap_points: BCa interval of the change, over items or clusters.
        t_statistic, p_t: the paired t-test's over items; None where every item changes alike.
        p_mcnemar: None where an outcome is neither 0 nor 1.
        p_cr1: the t-test's over clusters without a correction for clusters of unequal size.
        p_noninferior: one-sided, of "worse by the margin or more".
        mde_points: smallest change that the test finds with 80% power; None if there is none.
        needed: items with which an unchanged model is shown to be within the margin, at 80% power.
    """

    n: int
    clusters: int | None
    base: float
    candidate: float
    delta_points: float
    error_points: float
    relative: float | None
    test: str
    p: float
    interval_points: Interval
    bootstrap_points: Interval
    t_statistic: float | None
    p_t: float | None
    gained: int
    lost: int
    p_mcnemar: float | None
    p_cr1: float | None
    p_noninferior: float
    mde_points: float | None
    needed: int


def compare_outcomes(
    base: np.ndarray,
    candidate: np.ndarray,
    clusters: Sequence[str] | None = None,
    *,
    margin_points: float = 1.0,
    alpha: float = 0.05,
    seed: int = 0,
) -> PairedComparison:
    """Compare the outcomes of two models on the same items, in the same order.

    Args:
        base, candidate: (n,) scores.
        clusters: (n,) what the item hangs together with: a passage, a subject, a contrast group.
        margin_points: a loss below it counts as none.

    Raises:
        DataError: if there is nothing to test: fewer than two items or clusters, or no change.
    """
    base, candidate = np.asarray(base, dtype=float), np.asarray(candidate, dtype=float)
    labels = cluster_labels(clusters)
    test = paired_test(base, candidate, labels)
    change, margin = candidate - base, margin_points / 100
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    paired = None if np.ptp(change) == 0 else ttest_rel(candidate, base)
    mde = smallest_change(test, alpha)
    return PairedComparison(
        n=len(change),
        clusters=None if labels is None else len(np.unique(labels)),
        base=float(base.mean()),
        candidate=float(candidate.mean()),
        delta_points=100 * float(change.mean()),
        error_points=100 * test.error,
        relative=float(change.mean() / base.mean()) if base.any() else None,
        test=test.name,
        p=test.p,
        interval_points=_points(test.interval(alpha)),
        bootstrap_points=_points(_bootstrap(change, labels, alpha, seed)),
        t_statistic=None if paired is None else float(paired.statistic),
        p_t=None if paired is None else float(paired.pvalue),
        gained=gained,
        lost=lost,
        p_mcnemar=FlipTest(len(change), gained, lost).p if _binary(base, candidate) else None,
        p_cr1=None if labels is None else cr1_p(change, labels),
        p_noninferior=test.p_noninferior(margin),
        mde_points=mde and 100 * mde,
        needed=_needed(len(change), test.error, margin, alpha),
    )


def paired_test(
    base: np.ndarray, candidate: np.ndarray, labels: np.ndarray | None = None
) -> PairedTest:
    """Return the test that fits the outcomes.

    Args:
        base, candidate: (n,) scores.
        labels: (n,) number of each item's cluster; None where items stand alone.

    Raises:
        DataError: as `compare_outcomes` does.
    """
    change, n = candidate - base, len(base)
    if n < 2:
        raise DataError(f"a paired comparison needs 2 items or more, got {n}")
    if not np.isfinite(change).all():
        raise DataError("an outcome is not a finite number")
    if not change.any():
        raise DataError(f"the outcomes of both models are equal on all {n:,} items")
    if labels is None and _binary(base, candidate):
        return FlipTest(n, int((change > 0).sum()), int((change < 0).sum()))
    name, residuals = "paired t", change - change.mean()
    if labels is None:
        error, df = float(change.std(ddof=1)) / math.sqrt(n), n - 1.0
    else:
        name, (error, df) = "clustered t", _clustered(residuals, labels)
    if error < 1e-12:
        raise DataError("every item changes alike, so that nothing tells how far chance goes")
    return MeanTest(name, float(change.mean()), error, df)


def _clustered(residuals: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the standard error of a mean over clusters (CR2) and its degrees of freedom.

    Where all clusters are of one size, they are CR1 and clusters - 1; a cluster that holds much of
    the items makes both more careful.

    Source:
        Imbens and Kolesár, Robust standard errors in small samples, 2016: Bell and McCaffrey's
        correction, with one correlation within clusters.
    """
    sums, sizes, n = np.bincount(labels, residuals), np.bincount(labels), len(residuals)
    if len(sizes) < 2:
        raise DataError(f"all {n:,} items hang together in one cluster; 2 or more are needed")
    factor, squares = 1 / (1 - sizes / n), float((residuals**2).sum())
    pairs = max(float((sizes * (sizes - 1)).sum()), 1.0)
    shared = max((float((sums**2).sum()) - squares) / pairs, 0.0)  # covariance of two in a cluster
    spread = sizes * max(squares / n - shared, 0.0) + sizes**2 * shared  # variance of a sum
    # The sums of residuals have covariance K = D + a x' + x a'; df = tr(K)² / |K|².
    diagonal, a = factor * spread, np.sqrt(factor) * sizes / n
    x = spread.sum() / 2 * a - np.sqrt(factor) * spread
    trace = float((diagonal + 2 * a * x).sum())
    norm_2 = (
        (diagonal**2).sum() + 4 * (diagonal * a * x).sum() + 2 * (a @ a * (x @ x) + (a @ x) ** 2)
    )
    error = math.sqrt(float((factor * sums**2).sum())) / n
    return error, trace**2 / norm_2 if norm_2 > 0 else len(sizes) - 1.0


def cr1_p(change: np.ndarray, labels: np.ndarray) -> float:
    """Return p of the t-test over clusters as others have it: error CR1, clusters - 1 degrees."""
    sums = np.bincount(labels, change - change.mean())
    count = len(sums)
    error = math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(change)
    return float(2 * t.sf(abs(float(change.mean())) / error, count - 1))


def cluster_labels(clusters: Sequence[str] | None) -> np.ndarray | None:
    """Return the number of each item's cluster; None where no two items share one."""
    if clusters is None:
        return None
    names, labels = np.unique(np.asarray(clusters), return_inverse=True)
    return None if len(names) == len(labels) else labels


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number by Holm's method."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1)
    return adjusted.tolist()


@functools.lru_cache(maxsize=1024)
def smallest_change(test: PairedTest, alpha: float = 0.05) -> float | None:
    """Return the smallest change that the test finds with 80% power; None if there is none."""

    def lack(change: float) -> float:
        return test.power(change, alpha) - POWER

    return None if lack(1.0) < 0 else _root(lack, 1e-9, 1.0)


def mcnemar_power(n: int, discordance: float, change: float, alpha: float = 0.05) -> float:
    """Return the exact power of the exact McNemar test.

    Args:
        discordance: share of the items on which one model alone is right, at least `change`.
        change: true difference of the two shares right, not negative.
    """
    low, high = binom.ppf([1e-12, 1 - 1e-12], n, discordance)
    flips = np.arange(low, high + 1)
    most = binom.ppf(alpha / 2, flips, 0.5)  # of the rarer flip, for the test to reject
    most -= binom.cdf(most, flips, 0.5) > alpha / 2
    share = (1 + change / discordance) / 2
    rejects = binom.cdf(most, flips, share) + binom.sf(flips - most - 1, flips, share)
    return float((binom.pmf(flips, n, discordance) * rejects).sum())


def t_power(error: float, df: float, change: float, alpha: float = 0.05) -> float:
    """Return the power of a two-sided t-test for a change with this standard error."""
    reach, centre = float(t.isf(alpha / 2, df)), change / error
    right, left = nct.sf(reach, df, centre), nct.cdf(-reach, df, centre)
    # scipy's noncentral t has no value where one end is all but 1 or the other all but 0
    return float(min(1, np.nan_to_num(right, nan=1.0) + np.nan_to_num(left)))


def bca(resampled: np.ndarray, left_out: np.ndarray, value: float, alpha: float) -> Interval:
    """Return the bias-corrected and accelerated bootstrap interval.

    Args:
        resampled: (resamples,) the statistic of each resample.
        left_out: (units,) the statistic without each unit.
        value: the statistic itself.

    Source:
        Efron, Better bootstrap confidence intervals, 1987.
    """
    shares, z = np.array([alpha / 2, 1 - alpha / 2]), norm.ppf([alpha / 2, 1 - alpha / 2])
    below = ((resampled < value).mean() + (resampled <= value).mean()) / 2
    if 0 < below < 1:  # otherwise no bias can be told, and the plain percentiles stand
        pulls, shifted = left_out.mean() - left_out, norm.ppf(below) + z
        acceleration = (pulls**3).sum() / (6 * (pulls**2).sum() ** 1.5)
        shares = norm.cdf(norm.ppf(below) + shifted / (1 - acceleration * shifted))
    low, high = np.percentile(resampled, 100 * shares)
    return float(low), float(high)


def _binary(base: np.ndarray, candidate: np.ndarray) -> bool:
    return bool(np.isin([base, candidate], (0, 1)).all())


def _needed(n: int, error: float, margin: float, alpha: float) -> int:
    """Return the items for 80% power to show that an unchanged model is within the margin."""
    z = float(norm.isf(alpha / 2))
    least = z**2 * (1 - margin) / margin  # where not one item changes: FlipTest.score(-margin) = z
    return math.ceil(max(n * ((z + float(norm.ppf(POWER))) * error / margin) ** 2, least))


def _bootstrap(change: np.ndarray, labels: np.ndarray | None, alpha: float, seed: int) -> Interval:
    if np.ptp(change) == 0:
        return float(change[0]), float(change[0])
    labels = np.arange(len(change)) if labels is None else labels
    units = np.stack([np.bincount(labels, weights=change), np.bincount(labels)], axis=1)
    kinds, counts = np.unique(units, axis=0, return_counts=True)
    rng, resampled = np.random.default_rng(seed), list[np.ndarray]()
    for _ in range(_RESAMPLES // _BATCH):
        draws = rng.multinomial(len(units), counts / len(units), size=_BATCH) @ kinds
        resampled.append(draws[:, 0] / draws[:, 1])
    whole = units.sum(axis=0)
    left_out = (whole - units) / np.maximum(whole - units, 1)[:, 1:]
    return bca(np.concatenate(resampled), left_out[:, 0], float(whole[0] / whole[1]), alpha)


def _points(interval: Interval) -> Interval:
    return 100 * interval[0], 100 * interval[1]


def _root(function: Callable[[float], float], first: float, second: float) -> float:
    root: Any = brentq(function, first, second, xtol=1e-12)  # the stubs know a second shape
    return float(root)
