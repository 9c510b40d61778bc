"""A part of a score: a number in [0, 1] and the reason for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScorePart:
    """How good one side of a record is, and why."""

    value: float
    reason: str

    def to_json(self) -> dict[str, float | str]:
        return {"value": round(self.value, 4), "reason": self.reason}


def worst(*parts: ScorePart) -> ScorePart:
    """Return the product of the values with the reason of the worst; each fault counts."""
    value = 1.0
    for part in parts:
        value *= part.value
    return ScorePart(value, min(parts, key=lambda part: part.value).reason)
