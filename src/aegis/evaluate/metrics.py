"""Metrics of decisions, each with its n and an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import (
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from aegis.data.records import Record
from aegis.protocol.decisions import NAMES, UNSAFE, Decision

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from aegis.engine.verdict import Verdict

_CLASSES = list(range(len(NAMES)))
_RESAMPLES, _AUC_RESAMPLES = 2000, 400
BINS = 15
_ZERO: Any = 0  # sklearn's stubs know only the textual choices


@dataclass(frozen=True)
class Judged:
    """n records that were decided about.

    Args:
        truth: (n,) class ids.
        probability: (n, 4).
        predicted: (n,) class ids; what was decided, which a threshold may make another class than
            the most probable one.
    """

    truth: np.ndarray
    probability: np.ndarray
    predicted: np.ndarray

    @classmethod
    def likeliest(cls, truth: np.ndarray, probability: np.ndarray) -> Judged:
        """Take the most probable decision about each."""
        return cls(truth, probability, probability.argmax(axis=1))

    @classmethod
    def of(cls, records: Sequence[Record], verdicts: Sequence[Verdict]) -> Judged:
        """Bring records and what was decided about them together."""
        return cls(
            np.array([int(record.decision) for record in records]),
            np.array([verdict.probabilities for verdict in verdicts]),
            np.array([int(verdict.decision) for verdict in verdicts]),
        )

    def only(self, chosen: np.ndarray) -> Judged:
        """Return those of a (n,) bool mask."""
        return Judged(self.truth[chosen], self.probability[chosen], self.predicted[chosen])

    @property
    def unsafe(self) -> np.ndarray:
        """(n,) bool: what must not be allowed."""
        return np.isin(self.truth, [int(decision) for decision in UNSAFE])


def decision_metrics(judged: Judged, *, confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Return everything that is reported together about n decisions.

    Proportions carry exact binomial (Clopper–Pearson) intervals, F1 scores percentile bootstrap
    intervals over items. Classes that do not occur in the truth are marked absent and left out of
    macro F1.
    """
    truth, probability, predicted = judged.truth, judged.probability, judged.predicted
    allowed = predicted == Decision.ALLOW
    harmless = truth == Decision.ALLOW
    miss = proportion(allowed[judged.unsafe], confidence)
    intervals = _bootstrap(truth, predicted, confidence, seed)
    macro, counts = intervals.pop("macro"), _confusion(truth, predicted)
    return {
        "n": len(truth),
        "confidence": confidence,
        "accuracy": proportion(predicted == truth, confidence),
        "macro_f1": {"value": macro_f1(truth, predicted), "n": len(truth), "interval": macro},
        "per_class": _per_class(truth, predicted, intervals),
        "false_positive_rate": miss,
        "miss_rate": miss,
        "over_refusal_rate": proportion(~allowed[harmless], confidence),
        "escalation_rate": proportion(predicted == Decision.ESCALATION, confidence),
        "nll": float(log_loss(truth, probability, labels=_CLASSES)),
        "brier": float(((probability - np.eye(len(NAMES))[truth]) ** 2).sum(axis=1).mean()),
        "ece": expected_calibration_error(truth, probability),
        "confusion": {"rows": "truth", "columns": "predicted", "labels": NAMES, "counts": counts},
    }


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean F1 over the classes that occur in the truth."""
    present = [label for label in _CLASSES if (truth == label).any()]
    return float(f1_score(truth, predicted, labels=present, average="macro", zero_division=_ZERO))


def expected_calibration_error(
    truth: np.ndarray, probability: np.ndarray, *, bins: int = BINS
) -> float:
    """Return the mean gap of confidence and accuracy over equal-width bins, weighted by share.

    Source:
        Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    return calibration_gap(probability.max(axis=1), probability.argmax(axis=1) == truth, bins=bins)


def calibration_gap(chance: np.ndarray, happened: np.ndarray, *, bins: int = BINS) -> float:
    """Return the mean gap of (n,) chances and how often it happened, over equal-width bins."""
    apart = np.bincount(bin_of(chance, bins), weights=chance - happened, minlength=bins)
    return float(np.abs(apart).sum() / len(chance))


def bin_of(chance: np.ndarray, bins: int) -> np.ndarray:
    """(n,) → (n,) the number of each one's bin."""
    return np.minimum((chance * bins).astype(int), bins - 1)


def proportion(hits: np.ndarray, confidence: float) -> dict[str, Any]:
    """Return the share of true values with its n and its exact binomial interval."""
    if not len(hits):
        return {"value": None, "n": 0, "interval": None}
    low, high = binomtest(int(hits.sum()), len(hits)).proportion_ci(confidence, method="exact")
    return {"value": float(hits.mean()), "n": len(hits), "interval": [float(low), float(high)]}


def paired_difference(first: np.ndarray, second: np.ndarray, confidence: float) -> dict[str, Any]:
    """Return the share of `second` minus that of `first`, with an interval.

    Args:
        first, second: (n,) bool, the same items in the same order, n >= 1.

    Source:
        Newcombe, Improved confidence intervals for the difference between binomial proportions
        based on paired data, 1998, method 10: Wilson intervals, and the correlation of the two.
    """
    n = len(first)
    shares = [float(second.mean()), float(first.mean())]
    ends = [
        binomtest(int(hits.sum()), n).proportion_ci(confidence, method="wilson")
        for hits in (second, first)
    ]
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    excess = both * neither - int((second & ~first).sum()) * int((first & ~second).sum())
    if excess > 0:
        excess = max(excess - n / 2, 0)
    margins = math.prod(int(hits.sum()) * int((~hits).sum()) for hits in (first, second))
    correlation = excess / math.sqrt(margins) if margins else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0))

    (p, q), ((p_low, p_high), (q_low, q_high)) = shares, ends
    low, high = p - q - reach(p - p_low, q_high - q), p - q + reach(p_high - p, q - q_low)
    return {"value": p - q, "n": n, "interval": [low, high]}


def unsafe_auc(judged: Judged, confidence: float, *, seed: int = 0) -> dict[str, Any]:
    """Return how often an unsafe record has a lower P(ALLOW) than a harmless one, whatever the
    threshold; the interval is a percentile bootstrap over items of either kind."""
    chance, harmless = judged.probability[:, Decision.ALLOW], judged.truth == Decision.ALLOW
    good, bad = chance[harmless], chance[judged.unsafe]
    n = len(good) + len(bad)
    if not (len(good) and len(bad)):
        return {"value": None, "n": n, "interval": None}
    rng, labels = np.random.default_rng(seed), np.repeat([1, 0], [len(good), len(bad)])

    def drawn(values: np.ndarray) -> np.ndarray:
        return values[rng.integers(0, len(values), len(values))]

    draws = [roc_auc_score(labels, np.r_[drawn(good), drawn(bad)]) for _ in range(_AUC_RESAMPLES)]
    tail = 50 * (1 - confidence)
    ends = np.percentile(draws, [tail, 100 - tail]).tolist()
    value = float(roc_auc_score(labels, np.r_[good, bad]))
    return {"value": value, "n": n, "interval": ends}


def _per_class(
    truth: np.ndarray, predicted: np.ndarray, intervals: dict[str, list[float]]
) -> dict[str, Any]:
    precision, recall, f1, support = (
        np.asarray(values)
        for values in precision_recall_fscore_support(
            truth, predicted, labels=_CLASSES, zero_division=_ZERO
        )
    )
    return {
        name: {
            "f1": float(f1[label]),
            "interval": intervals[name],
            "precision": float(precision[label]),
            "recall": float(recall[label]),
            "n": int(support[label]),
        }
        if support[label]
        else {"absent": True, "n": 0, "predicted": int((predicted == label).sum())}
        for label, name in enumerate(NAMES)
    }


def _bootstrap(
    truth: np.ndarray, predicted: np.ndarray, confidence: float, seed: int
) -> dict[str, list[float]]:
    """Return percentile intervals of each class's F1 and their mean, by resampling the items."""
    rng = np.random.default_rng(seed)
    counts = np.asarray(_confusion(truth, predicted), dtype=float)
    draws = rng.multinomial(len(truth), counts.ravel() / counts.sum(), size=_RESAMPLES)
    draws = draws.reshape(-1, len(NAMES), len(NAMES))
    hits, rows, columns = draws.diagonal(axis1=1, axis2=2), draws.sum(axis=2), draws.sum(axis=1)
    f1 = 2 * hits / np.maximum(rows + columns, 1)
    present = counts.sum(axis=1) > 0
    tail = 100 * (1 - confidence) / 2

    samples = {"macro": f1[:, present].mean(axis=1)}
    samples |= {name: f1[:, label] for label, name in enumerate(NAMES)}
    return {
        name: np.percentile(values, [tail, 100 - tail]).tolist() for name, values in samples.items()
    }


def _confusion(truth: np.ndarray, predicted: np.ndarray) -> list[list[int]]:
    return confusion_matrix(truth, predicted, labels=_CLASSES).tolist()
