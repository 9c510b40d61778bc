"""From the decision head's logits to a verdict: the one place where head, n-grams and calibration
come together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aegis.model.calibration import Calibration, probabilities
from aegis.model.heads import DecisionHead
from aegis.model.lexical import LexicalHead
from aegis.model.prompt import PromptEncoder
from aegis.protocol.decisions import NAMES, Decision


@dataclass(frozen=True)
class Verdict:
    """One decision. `probabilities` sum to 1 in the order of the decisions; `ms` is this prompt's
    share of its batch."""

    decision: Decision
    probabilities: tuple[float, ...]
    ms: float

    def to_json(self) -> dict[str, Any]:
        probabilities = dict(zip(NAMES, self.probabilities, strict=True))
        return {"decision": self.decision.name, "probabilities": probabilities, "ms": self.ms}


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


def verdicts(logits: np.ndarray, ms: Sequence[float] | np.ndarray) -> list[Verdict]:
    """Take the most probable decision of each of (n, 4) logits."""
    return [
        Verdict(Decision(int(row.argmax())), tuple(map(float, row)), round(float(share), 3))
        for row, share in zip(probabilities(logits), ms, strict=True)
    ]
