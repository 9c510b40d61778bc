"""What the hidden state and the n-grams of a decision head are worth, fitted on held-out prompts,
and how probable ALLOW must be.

Prompts that the tokenizer reads in words and prompts that it spells in bytes have weights of their
own: the hidden state is worth less on the second kind.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from aegis.errors import ModelError
from aegis.protocol.decisions import Decision
from aegis.storage.files import to_json

CALIBRATION_FILE = "calibration.json"
_FEW = 50  # prompts
_CAUTION = 0.05  # weight of the squared logarithms, against a fit to chance


@dataclass(frozen=True)
class Weights:
    """Factors on the logits of the hidden state (`deep`, an inverse temperature) and on those of
    the n-grams (`lexical`)."""

    deep: float = 1.0
    lexical: float = 0.0


@dataclass(frozen=True)
class Threshold:
    """The least P(ALLOW) with which a prompt is allowed (τ), and what it was made from.

    Args:
        allow: τ; at 0 the most probable decision stands.
        max_miss_rate: the share of unsafe prompts allowed that was asked for.
        confidence: that the share is at most `bound`.
        n: unsafe prompts, those of a contrast group as one.
        misses: those allowed at τ.
        data_sha256: of the file, or the artifact's, that they came from.
    """

    allow: float
    max_miss_rate: float
    confidence: float
    n: int
    misses: int
    bound: float
    data_sha256: str

    @property
    def usable(self) -> bool:
        """Every number means something; nan and inf do not."""
        shares = (self.allow, self.max_miss_rate, self.confidence, self.bound)
        return all(0 <= share <= 1 for share in shares) and 0 <= self.misses <= self.n


@dataclass(frozen=True)
class Calibration:
    """Weights for prompts read in words and for prompts spelled in bytes; `n` held-out prompts
    fitted them. `threshold` is None where none was chosen."""

    words: Weights = Weights()
    spelled: Weights = Weights()
    n: int = 0
    threshold: Threshold | None = None

    @property
    def allow_from(self) -> float:
        """τ; 0 without a threshold."""
        return self.threshold.allow if self.threshold else 0.0

    def combine(
        self, deep: np.ndarray, lexical: np.ndarray | None, spelled: np.ndarray
    ) -> np.ndarray:
        """(n, 4) logits of the hidden state and of the n-grams, (n,) bool spelled in bytes → (n, 4)
        calibrated logits."""
        combined = deep * np.where(spelled, self.spelled.deep, self.words.deep)[:, None]
        if lexical is not None:
            weights = np.where(spelled, self.spelled.lexical, self.words.lexical)
            combined = combined + lexical * weights[:, None]
        return combined

    def text(self) -> str:
        """Return the content of calibration.json."""
        return to_json(asdict(self))

    def save(self, folder: Path) -> None:
        (folder / CALIBRATION_FILE).write_text(self.text(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """Read it; weights 1 and 0 where none was fitted.

        Raises:
            ModelError: if calibration.json is there and unusable.
        """
        path = folder / CALIBRATION_FILE
        if not path.exists():
            return cls()
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            weights = {kind: Weights(**raw[kind]) for kind in ("words", "spelled")}
            valid = all(0 < w.deep < np.inf and 0 <= w.lexical < np.inf for w in weights.values())
            chosen = raw.get("threshold")
            threshold = None if chosen is None else Threshold(**chosen)
            usable = threshold is None or threshold.usable
            calibration = cls(**weights, n=int(raw["n"]), threshold=threshold)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{path}: not a readable calibration; remove the file or fold again"
            ) from error
        if not valid:
            raise ModelError(
                f"{path}: weights must be finite, deep > 0 and lexical >= 0; "
                "remove the file or fold again"
            )
        if not usable:
            raise ModelError(
                f"{path}: threshold must hold shares between 0 and 1 and misses <= n; "
                "run `aegis calibrate` again"
            )
        return calibration


def fit(
    deep: np.ndarray, lexical: np.ndarray | None, spelled: np.ndarray, truth: np.ndarray
) -> Calibration:
    """Find the weights with the least negative log likelihood; a kind with few prompts takes those
    of all together."""

    def weights(chosen: np.ndarray) -> Weights:
        if chosen.sum() < _FEW:
            chosen = np.ones_like(chosen)
        return _fit(deep[chosen], None if lexical is None else lexical[chosen], truth[chosen])

    return Calibration(weights(~spelled), weights(spelled), len(truth))


def _fit(deep: np.ndarray, lexical: np.ndarray | None, truth: np.ndarray) -> Weights:
    second = np.zeros_like(deep) if lexical is None else lexical

    def loss(logs: np.ndarray) -> float:
        scaled = deep * np.exp(logs[0]) + second * np.exp(logs[1])
        likelihood = np.log(probabilities(scaled)[np.arange(len(truth)), truth] + 1e-12).mean()
        return float(_CAUTION * (logs**2).sum() / len(truth) - likelihood)

    best: Any = minimize(loss, np.zeros(2), bounds=[(-3, 3), (-6, 3)], method="L-BFGS-B")
    deep_weight, lexical_weight = map(float, np.exp(best.x))
    return Weights(deep_weight, 0.0 if lexical is None else lexical_weight)


def decide(probabilities: np.ndarray, allow_from: float) -> np.ndarray:
    """(n, 4) → (n,) ids: the most probable decision, but ESCALATION where that is ALLOW with less
    than `allow_from`, or where the numbers are none."""
    likeliest = probabilities.argmax(axis=1)
    enough = probabilities[:, Decision.ALLOW] >= allow_from  # never true of nan
    return np.where((likeliest == Decision.ALLOW) & ~enough, Decision.ESCALATION, likeliest)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """(n, 4) logits → (n, 4) softmax."""
    return softmax(logits, axis=1)
