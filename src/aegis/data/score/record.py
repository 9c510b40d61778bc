"""The score of one record: its parts, and what they come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aegis.data.records import Record
from aegis.data.score.answer import correctness
from aegis.data.score.part import ScorePart
from aegis.data.score.soundness import soundness
from aegis.data.score.style import depth, form, language
from aegis.errors import DataError

VERSION = 1
# Fitted on half of the graded items; docs/data.md has what the other half says.
WEIGHTS = {"soundness": 0.3, "correctness": 0.3, "depth": 0.3, "language": 0.05, "format": 0.05}
_GATES = ("soundness", "correctness", "language", "format")
_DIVERSITY = 0.1  # what a record loses that the set has said already


@dataclass(frozen=True)
class RecordScore:
    """How good a thinking record is.

    Args:
        parts: soundness, correctness, depth, language, format and, within a set, diversity.
    """

    id: str
    parts: dict[str, ScorePart]

    @property
    def overall(self) -> float:
        """The weighted mean of the parts, times the worst fault, in [0, 1]."""
        mean = sum(weight * self.parts[name].value for name, weight in WEIGHTS.items())
        gate = min(self.parts[name].value for name in _GATES)
        varied = self.parts["diversity"].value if "diversity" in self.parts else 1.0
        return mean * (0.4 + 0.6 * gate) * (1 - _DIVERSITY * (1 - varied))

    def values(self) -> dict[str, float]:
        """Return the overall score and each part's value."""
        parts = {name: round(part.value, 4) for name, part in self.parts.items()}
        return {"overall": round(self.overall, 4), **parts}

    def to_json(self) -> dict[str, Any]:
        parts = {name: part.to_json() for name, part in self.parts.items()}
        return {"id": self.id, "overall": round(self.overall, 4), "parts": parts}


def score_record(record: Record) -> RecordScore:
    """Score one record by itself.

    Raises:
        DataError: if it has no thinking.
    """
    if record.thinking is None:
        raise DataError(f"{record.id}: has no thinking to score; give records with thinking")
    thinking = record.thinking
    return RecordScore(
        record.id,
        {
            "soundness": soundness(record, thinking),
            "correctness": correctness(record, thinking.public),
            "depth": depth(record, thinking),
            "language": language(record, thinking),
            "format": form(record, thinking),
        },
    )
