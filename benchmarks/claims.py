"""What a benchmark prints: every claim with its interval, its n and its limit, and the machine it
was measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aegis.evaluate.metrics import macro_f1

Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Claim:
    """A figure and the limit that it must keep.

    Args:
        found: the figure and the ends of its 95 % interval.
        n: measurements behind it.
        floor: the limit is the least, not the most.
        by: which of the three the limit is for; 2 is the interval's upper end.
    """

    name: str
    found: Interval
    limit: float
    n: int
    floor: bool = False
    by: int = 0

    @property
    def kept(self) -> bool:
        return (
            self.found[self.by] >= self.limit if self.floor else self.found[self.by] <= self.limit
        )

    def __str__(self) -> str:
        value, low, high = self.found
        sign, verdict = (
            "≥" if self.floor else "≤",
            "ok" if self.kept else "OVER" if not self.floor else "UNDER",
        )
        return (
            f"{self.name:58} {value:.3f}  [{low:.3f}, {high:.3f}]  n {self.n}  "
            f"limit {sign} {self.limit:g}  {verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kept": self.kept}


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    found = {"cores": usable, "threads": torch.get_num_threads(), "device": device}
    return found | {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }


def report(
    claims: Sequence[Claim],
    *,
    lines: Sequence[str] = (),
    json_path: Path | None,
    details: dict[str, Any],
) -> bool:
    """Print the table, write it where asked; True if every limit is kept."""
    for claim in claims:
        print(claim)
    for line in ["", *lines] if lines else []:
        print(line)
    facts = machine()
    print("\nmachine: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
    if json_path:
        found = {"claims": [claim.to_json() for claim in claims], "machine": facts, **details}
        json_path.write_text(
            json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return all(claim.kept for claim in claims)


def median(values: Sequence[float] | np.ndarray) -> Interval:
    """Return the median and its 95 % bootstrap interval."""
    return _interval(values, np.median)


def mean(values: Sequence[float] | np.ndarray) -> Interval:
    """Return the mean and its 95 % bootstrap interval."""
    return _interval(values, np.mean)


def macro_f1_difference(truth: np.ndarray, one: np.ndarray, other: np.ndarray) -> Interval:
    """Return the macro F1 of `other` minus that of `one`, and its bootstrap interval over items."""
    draws = np.random.default_rng(0).integers(0, len(truth), (1000, len(truth)))
    samples = [macro_f1(truth[d], other[d]) - macro_f1(truth[d], one[d]) for d in draws]
    low, high = np.percentile(samples, [2.5, 97.5])
    return macro_f1(truth, other) - macro_f1(truth, one), float(low), float(high)


def _interval(values: Sequence[float] | np.ndarray, of: Callable[..., Any]) -> Interval:
    sample = np.array(values, dtype=float)
    draws = np.random.default_rng(0).integers(0, len(sample), (2000, len(sample)))
    low, high = np.percentile(of(sample[draws], axis=1), [2.5, 97.5])
    return float(of(sample)), float(low), float(high)
