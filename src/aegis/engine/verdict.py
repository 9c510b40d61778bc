"""From the decision head's logits to a verdict: the one place where head, n-grams and calibration
come together, and where τ is obeyed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aegis.model.calibration import Calibration, decide, probabilities
from aegis.model.heads import DecisionHead
from aegis.model.lexical import LexicalHead
from aegis.model.prompt import PromptEncoder
from aegis.protocol.decisions import NAMES, Decision

MOST_PROBABLE, CRISIS_PHRASE = "most probable", "crisis phrase"


@dataclass(frozen=True)
class Verdict:
    """One decision.

    Args:
        probabilities: sum to 1, in the order of the decisions; the model's own, whatever rule
            decided.
        ms: this prompt's share of its batch.
        rule: what made the decision out of the probabilities.
    """

    decision: Decision
    probabilities: tuple[float, ...]
    ms: float
    rule: str = MOST_PROBABLE

    def to_json(self) -> dict[str, Any]:
        probabilities = dict(zip(NAMES, self.probabilities, strict=True))
        shown = {"decision": self.decision.name, "rule": self.rule}
        return {**shown, "probabilities": probabilities, "ms": self.ms}


@dataclass(frozen=True)
class CalibratedHead:
    """A decision head and what travels beside it."""

    head: DecisionHead
    lexical: LexicalHead | None = None
    calibration: Calibration = field(default_factory=Calibration)

    @classmethod
    def load(cls, folder: Path, head: DecisionHead | None = None) -> CalibratedHead:
        """Read the folder's n-grams and calibration, and its head unless one is given.

        Raises:
            ModelError: if a file is unusable, or the head is absent.
        """
        head = head or DecisionHead.load(folder)
        return cls(head, LexicalHead.load(folder), Calibration.load(folder))

    def from_pooled(self, pooled: np.ndarray) -> np.ndarray:
        """(n, width) float32 pooled hidden states → (n, 4) logits, not calibrated."""
        with torch.inference_mode():
            return self.head.from_pooled(torch.from_numpy(pooled)).numpy()

    def calibrated(
        self, logits: np.ndarray, prompts: Sequence[str], encoder: PromptEncoder
    ) -> np.ndarray:
        """Weigh the head's (n, 4) logits against those of the prompts' n-grams."""
        lexical = self.lexical.logits(prompts) if self.lexical else None
        return self.calibration.combine(logits, lexical, encoder.spelled_in_bytes(prompts))


def verdicts(
    logits: np.ndarray,
    ms: Sequence[float] | np.ndarray,
    allow_from: float = 0.0,
    crises: Collection[int] = (),
) -> list[Verdict]:
    """Decide by each of (n, 4) calibrated logits, those of a prompt's severest reading.

    Args:
        allow_from: τ.
        crises: the rows of prompts that say so in plain words.
    """
    chances = probabilities(logits)
    decided = decide(chances, allow_from)
    below = f"below τ {allow_from:g}: a person looks"
    rules = np.where(decided == chances.argmax(axis=1), MOST_PROBABLE, below).tolist()
    for row in crises:
        rules[row] = CRISIS_PHRASE
    return [
        Verdict(Decision(decision), tuple(row), round(float(share), 3), rule)
        for decision, row, share, rule in zip(
            decided.tolist(), chances.tolist(), ms, rules, strict=True
        )
    ]
