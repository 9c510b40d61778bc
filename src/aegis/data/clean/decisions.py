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
from scipy.sparse import csr_matrix, vstack

from aegis.protocol.decisions import Decision

FOLDS = 5
_BITS, _LONGEST, _AT_ONCE = 16, 3, 500
_MIX = np.uint64(0x9E3779B97F4A7C15)
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
        from sklearn.linear_model import SGDClassifier

        counted = _ngrams(prompts)
        kind: Any = {"loss": "log_loss", "max_iter": _EPOCHS, "tol": None}
        parts = []
        for others in taught:
            seen = np.bincount(counted[others].indices, minlength=1 << _BITS)
            idf = 1 + np.log((1 + len(others)) / (1 + seen))
            model: Any = SGDClassifier(alpha=1e-4, random_state=0, **kind)
            model.fit(_weighed(counted[others], idf), labels[others])
            parts.append((model.coef_.T, model.intercept_, idf))
        return cls(*(np.stack([part[i] for part in parts]).astype(np.float32) for i in range(3)))

    def probabilities(self, prompts: Sequence[str], folds: NDArray[np.int_]) -> NDArray[np.float32]:
        """Return (n, 4), each row by the judge of its fold."""
        counted = _ngrams(prompts)
        result = np.empty((len(prompts), self.bias.shape[1]), np.float32)
        for fold in range(FOLDS):
            rows = np.flatnonzero(folds == fold)
            if len(rows):
                weighed = _weighed(counted[rows], self.idf[fold])
                logits = weighed @ self.weights[fold] + self.bias[fold]
                chances = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))  # one against the rest
                result[rows] = chances / chances.sum(axis=1, keepdims=True)
        return result

    def save(self, path: Path) -> None:
        np.savez(path, weights=self.weights, bias=self.bias, idf=self.idf)

    @classmethod
    def load(cls, path: Path) -> DecisionProbe:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["weights"], arrays["bias"], arrays["idf"])


def _ngrams(prompts: Sequence[str]) -> csr_matrix:
    """Return (n, features) how often each n-gram of up to three characters is in a prompt."""
    starts = range(0, len(prompts), _AT_ONCE)
    return csr_matrix(vstack([_hashed(prompts[at : at + _AT_ONCE]) for at in starts]))


def _hashed(prompts: Sequence[str]) -> csr_matrix:
    """Do it for a few prompts: a character's code has at most 21 bits, so three make a number."""
    plain = [" ".join(prompt.lower().split()) for prompt in prompts]
    codes = np.frombuffer("".join(plain).encode("utf-32-le"), np.uint32).astype(np.uint64)
    of = np.repeat(np.arange(len(plain), dtype=np.uint64), [len(text) for text in plain])
    grams, keys = codes, []
    for length in range(1, _LONGEST + 1):
        if length > 1:
            grams = grams[:-1] << np.uint64(21) | codes[length - 1 :]
        hashed = of[: len(grams)] << np.uint64(_BITS) | grams * _MIX >> np.uint64(64 - _BITS)
        keys.append(hashed[of[: len(grams)] == of[length - 1 :]])
    pairs, counts = np.unique(np.concatenate(keys), return_counts=True)
    starts = np.searchsorted(pairs >> np.uint64(_BITS), np.arange(len(plain) + 1))
    features = (pairs & np.uint64((1 << _BITS) - 1)).astype(np.int32)
    shape = len(plain), 1 << _BITS
    return csr_matrix((counts.astype(np.float32), features, starts.astype(np.int32)), shape)


def _weighed(counted: csr_matrix, idf: NDArray[np.floating]) -> csr_matrix:
    """Return TF-IDF of length 1 a row, TF being 1 + ln(count)."""
    values = (1 + np.log(counted.data)) * idf[counted.indices]
    rows = np.repeat(np.arange(len(counted.indptr) - 1), np.diff(counted.indptr))
    values /= np.sqrt(np.bincount(rows, values**2))[rows]
    return csr_matrix((values.astype(np.float32), counted.indices, counted.indptr), counted.shape)
