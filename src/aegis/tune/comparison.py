"""Whether the best settings beat the config's own beyond noise: paired over other seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class SeedComparison:
    """The objective of both, seed by seed, none of which a trial was chosen by.

    Args:
        difference: mean of best − default; `interval`: Student's, for the mean over such seeds.
    """

    seeds: tuple[int, ...]
    default: tuple[float, ...]
    best: tuple[float, ...]
    difference: float
    interval: tuple[float, float]

    @property
    def sentence(self) -> str:
        """Say in one sentence what can be said."""
        low, high = self.interval
        n = len(self.seeds)
        facts = f"{self.difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}, {n} seeds"
        if low > 0:
            return f"The best settings beat the config's own beyond noise ({facts})."
        if high < 0:
            return f"The best settings are worse than the config's own ({facts}): keep those."
        return f"Cannot tell the best settings from the config's own ({facts}): more seeds may."

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "sentence": self.sentence}


def compare_seeds(
    seeds: Sequence[int], default: Sequence[float], best: Sequence[float]
) -> SeedComparison:
    """Compare (n,) values of the objective, n at least 2.

    Source:
        Student's t for paired samples; Bouthillier et al., Accounting for Variance in Machine
        Learning Benchmarks, 2021, on why seeds are the unit.
    """
    changes = np.asarray(best, dtype=float) - np.asarray(default, dtype=float)
    n, mean = len(changes), float(changes.mean())
    error = float(changes.std(ddof=1)) / math.sqrt(n)
    reach = float(student_t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return SeedComparison(
        tuple(seeds), tuple(default), tuple(best), mean, (mean - reach, mean + reach)
    )
