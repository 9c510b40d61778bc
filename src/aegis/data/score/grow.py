"""Grow a set in stages, and keep a stage only if its quality holds against the one before.

The order is a function of the seed and each record's id. Every stage holds the ones before it, so
its records are scored anew for diversity within it: what a set loses by growing is variety.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from scipy import stats

from aegis.data.records import Record
from aegis.data.score.diversity import Phrases
from aegis.data.score.record import RecordScore


@dataclass(frozen=True)
class GrowthStage:
    """A size of the set, and whether it is kept.

    Args:
        mean: of the overall scores of what the stage adds; for the first, of all of it.
        difference: `mean` less that of the stage before; 0 for the first.
        lower: end of the one-sided interval of the difference.
        verdict: in a sentence.
    """

    size: int
    mean: float
    difference: float
    lower: float
    kept: bool
    verdict: str

    def to_json(self) -> dict[str, Any]:
        numbers = {name: round(getattr(self, name), 4) for name in ("mean", "difference", "lower")}
        return {"size": self.size, **numbers, "kept": self.kept, "verdict": self.verdict}


def in_order(records: Sequence[Record], *, seed: int) -> list[Record]:
    """Return the records in the order in which the set grows."""

    def place(record: Record) -> bytes:
        return hashlib.blake2b(f"{seed}\0{record.id}".encode(), digest_size=16).digest()

    return sorted(records, key=lambda record: (place(record), record.id))


def grow(
    records: Sequence[Record],
    scores: Sequence[RecordScore],
    sizes: Sequence[int],
    *,
    margin: float,
    alpha: float = 0.05,
) -> list[GrowthStage]:
    """Return the stages up to the first that is not kept.

    A stage is kept if the mean of what it adds is not lower than the stage before by `margin` or
    more: the one-sided 1 − alpha interval of the difference of means (Welch) lies above −margin.

    Args:
        records: in the order in which the set grows.
        scores: of the records, in their order; their diversity is set anew.
        sizes: rising.
    """
    stages: list[GrowthStage] = []
    before: list[float] = []
    for size in sizes:
        if len(records) < size:
            verdict = f"{size}: not reached, the set has {len(records)} records with thinking"
            stages.append(GrowthStage(size, 0.0, 0.0, 0.0, False, verdict))
            break
        values = [score.overall for score in with_diversity(records[:size], scores[:size])]
        added = values[len(before) :]
        mean = fmean(added)
        if not before:
            verdict = f"{size}: kept as the first, mean {mean:.3f}"
            stages.append(GrowthStage(size, mean, 0.0, 0.0, True, verdict))
        else:
            stages.append(_compared(size, added, before, margin, alpha))
        if not stages[-1].kept:
            break
        before = values
    return stages


def with_diversity(records: Sequence[Record], scores: Sequence[RecordScore]) -> list[RecordScore]:
    """Return the scores with each record's diversity within these records."""
    phrases = Phrases()
    for record in records:
        phrases.add(record)
    return [
        replace(score, parts={**score.parts, "diversity": phrases.part(record)})
        for record, score in zip(records, scores, strict=True)
    ]


def _compared(
    size: int, added: Sequence[float], before: Sequence[float], margin: float, alpha: float
) -> GrowthStage:
    mean, reference = fmean(added), fmean(before)
    difference = lower = mean - reference
    if min(len(added), len(before)) > 1 and len({*added, *before}) > 2:
        welch = stats.ttest_ind(added, before, equal_var=False, alternative="greater")
        lower = float(welch.confidence_interval(1 - alpha).low)
    kept = lower > -margin
    word = "kept" if kept else "not kept"
    sign = ">" if kept else "<="
    verdict = (
        f"{size}: {word}, mean {mean:.3f} against {reference:.3f}; the difference is at least "
        f"{lower:+.3f} ({1 - alpha:.0%}), {sign} -{margin:g}"
    )
    return GrowthStage(size, mean, difference, lower, kept, verdict)
