"""Which decisions a judge contradicts that has not seen the record: confident learning.

Source:
    Northcutt, Jiang & Chuang, Confident learning: estimating uncertainty in dataset labels, 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis.protocol.decisions import Decision

FOLDS = 5
_FEATURES, _NGRAMS = 1 << 16, (1, 3)
_MARGIN = 0.4
_EPOCHS = 6
_MOST_LEARNED, _LEAST_OF_EACH = 20_000, 20


def disagreements(
    labels: NDArray[np.int_], probabilities: NDArray[np.floating]
) -> NDArray[np.int_]:
    """Return the decision that is confidently another than the label, or -1.

    A class is confident from its mean probability among the records that are labelled so. The
    judge must also prefer it to the label by a margin.

    Args:
        labels: (n,).
        probabilities: (n, 4), out of sample.
    """
    suggested = np.full(len(labels), -1)
    if not len(labels):
        return suggested
    thresholds = np.array(
        [
            probabilities[labels == decision, decision].mean() if (labels == decision).any() else 2
            for decision in range(len(Decision))
        ]
    )
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    best = confident.argmax(axis=1)
    rows = np.arange(len(labels))
    margin = probabilities[rows, best] - probabilities[rows, labels]
    off = (confident[rows, best] > 0) & (best != labels) & (margin >= _MARGIN)
    suggested[off] = best[off]
    return suggested


@dataclass(frozen=True)
class DecisionProbe:
    """A linear judge of prompts by character n-grams, one for each fold, that was not taught it.

    Args:
        weights: (folds, features, 4) float32.
        bias: (folds, 4).
        idf: (folds, features).
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    idf: NDArray[np.float32]

    @classmethod
    def train(
        cls, prompts: Sequence[str], labels: NDArray[np.int_], folds: NDArray[np.int_]
    ) -> DecisionProbe | None:
        """Train each fold's judge on the others; None if a decision has too few records there."""
        taught = [np.flatnonzero(folds != fold)[:_MOST_LEARNED] for fold in range(FOLDS)]
        counts = np.bincount(labels, minlength=len(Decision))
        if counts.min() < _LEAST_OF_EACH or any(
            len(np.unique(labels[others])) < len(Decision) for others in taught
        ):
            return None
        from sklearn.feature_extraction.text import TfidfTransformer
        from sklearn.linear_model import SGDClassifier

        hashed = _hashed(prompts)
        kind: Any = {"loss": "log_loss", "max_iter": _EPOCHS, "tol": None}
        parts = []
        for others in taught:
            scale = TfidfTransformer(sublinear_tf=True).fit(hashed[others])
            model: Any = SGDClassifier(alpha=1e-4, random_state=0, **kind)
            model.fit(scale.transform(hashed[others]), labels[others])
            parts.append((model.coef_.T, model.intercept_, scale.idf_))
        return cls(*(np.stack([part[i] for part in parts]).astype(np.float32) for i in range(3)))

    def probabilities(self, prompts: Sequence[str], folds: NDArray[np.int_]) -> NDArray[np.float32]:
        """Return (n, 4), each row by the judge of its fold."""
        from sklearn.preprocessing import normalize

        hashed = _hashed(prompts)
        hashed.data = 1 + np.log(hashed.data)
        result = np.empty((len(prompts), self.bias.shape[1]), np.float32)
        for fold in range(FOLDS):
            rows = np.flatnonzero(folds == fold)
            if len(rows):
                scaled = normalize(hashed[rows].multiply(self.idf[fold]).tocsr())
                logits = scaled @ self.weights[fold] + self.bias[fold]
                chances = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))  # one against the rest
                result[rows] = chances / chances.sum(axis=1, keepdims=True)
        return result

    def save(self, path: Path) -> None:
        np.savez(path, weights=self.weights, bias=self.bias, idf=self.idf)

    @classmethod
    def load(cls, path: Path) -> DecisionProbe:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["weights"], arrays["bias"], arrays["idf"])


def _hashed(prompts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    kind: Any = {"analyzer": "char", "ngram_range": _NGRAMS, "n_features": _FEATURES}
    values: Any = {"norm": None, "alternate_sign": False, "dtype": np.float32}
    return HashingVectorizer(**kind, **values).transform(prompts)
