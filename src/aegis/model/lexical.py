"""Hashed words and character n-grams beside the decision head's hidden state.

A base whose tokenizer spells a language in bytes reads its words badly, however it is trained;
plain n-grams read them well, and generalise badly to other writers. Each is weighed by what it is
worth on held-out prompts (`calibration.py`). The split into a deep and a wide part follows Cheng et
al., Wide & Deep Learning, 2016.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.special import log_softmax
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_union

from aegis.errors import ModelError
from aegis.protocol.decisions import NAMES

LEXICAL_HEAD_FILE = "lexical_head.safetensors"
_BITS = 18


class LexicalHead:
    """Multinomial logistic regression over TF-IDF of hashed n-grams.

    Args:
        idf: (features,) inverse document frequencies.
        weight: (4, features). bias: (4,).
    """

    def __init__(self, idf: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
        self.idf, self.bias = idf, bias
        # By columns, which a product with sparse rows reads in place; else it copies all of them.
        self.weight = np.asfortranarray(weight)

    @classmethod
    def fit(
        cls, prompts: Sequence[str], decisions: Sequence[int], *, strength: float
    ) -> LexicalHead:
        """Train on prompts and their decisions; of a single decision nothing is learned.

        Args:
            strength: inverse regularisation, sklearn's C.
        """
        counts = _features().transform(prompts)
        tfidf = TfidfTransformer(sublinear_tf=True).fit(counts)
        weight = np.zeros((len(NAMES), counts.shape[1]), dtype=np.float32)
        if len(set(decisions)) < 2:
            return cls(tfidf.idf_.astype(np.float32), weight, np.zeros(len(NAMES), np.float32))
        regression = LogisticRegression(C=strength, max_iter=1000)
        fitted = regression.fit(tfidf.transform(counts), decisions)
        bias = np.full(len(NAMES), -10.0, dtype=np.float32)  # a decision that training never saw
        rows, intercepts = fitted.coef_, fitted.intercept_
        if len(fitted.classes_) == 2:  # sklearn keeps one row for two classes
            rows = np.concatenate([-rows, rows]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        weight[fitted.classes_], bias[fitted.classes_] = rows, intercepts
        return cls(tfidf.idf_.astype(np.float32), weight, bias)

    def logits(self, prompts: Sequence[str]) -> np.ndarray:
        """(n, 4) log-probabilities."""
        transformer = TfidfTransformer(sublinear_tf=True)
        transformer.idf_ = self.idf
        scores = transformer.transform(_features().transform(prompts)) @ self.weight.T + self.bias
        return log_softmax(scores, axis=1)

    def save(self, folder: Path) -> None:
        metadata = {"classes": ",".join(NAMES), "features": json.dumps({"bits": _BITS})}
        weight = np.ascontiguousarray(self.weight)  # safetensors writes memory as it lies
        tensors = {"idf": self.idf, "weight": weight, "bias": self.bias}
        save_file(tensors, folder / LEXICAL_HEAD_FILE, metadata=metadata)

    @classmethod
    def load(cls, folder: Path) -> LexicalHead | None:
        """Read a saved one; None where the folder has none.

        Raises:
            ModelError: if the file is there and unusable.
        """
        path = folder / LEXICAL_HEAD_FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                head = cls(*(file.get_tensor(name) for name in ("idf", "weight", "bias")))
                classes = (file.metadata() or {})["classes"]
            shape = (len(NAMES), 2 << _BITS)
            if (
                classes != ",".join(NAMES)
                or head.weight.shape != shape
                or len(head.idf) != shape[1]
            ):
                raise ValueError("other classes or features")
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise ModelError(
                f"{path}: not a readable lexical head; fold the adapter again"
            ) from error
        return head


def _features() -> Any:
    """Count words one by one and in pairs, and characters in runs of two to five: Japanese has no
    spaces."""
    shared: dict[str, Any] = {"n_features": 1 << _BITS, "alternate_sign": False, "norm": None}
    shared["dtype"] = np.float32
    words = HashingVectorizer(ngram_range=(1, 2), **shared)
    return make_union(words, HashingVectorizer(analyzer="char_wb", ngram_range=(2, 5), **shared))
