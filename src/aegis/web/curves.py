"""Curves that stay small however long a training is, and look the same."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field

MOST_POINTS = 1024
WIDTH, HEIGHT, _LEFT, _MARGIN = 640, 180, 8, 8


@dataclass
class Curve:
    """A value by step, in at most `MOST_POINTS` points: the extremes of each stretch are kept.

    Args:
        missing: how many values were no number.
    """

    points: list[tuple[int, float]] = field(default_factory=list)
    missing: int = 0

    def add(self, step: int, value: float | None) -> None:
        """Add the newest point. A step at or before the last one replaces all from there on: a run
        went back to a snapshot."""
        points = self.points
        if points and step <= points[-1][0]:
            del points[bisect_left(points, (step, -math.inf)) :]
        if value is None or not math.isfinite(value):
            self.missing += 1
            return
        points.append((step, value))
        if len(points) > MOST_POINTS:
            self.points = thinned(points)

    @property
    def last(self) -> float:
        return self.points[-1][1]

    @property
    def bounds(self) -> tuple[float, float]:
        values = [value for _, value in self.points]
        return min(values), max(values)

    def line(self, steps: tuple[int, int], bounds: tuple[float, float]) -> str:
        """Return the points of an SVG polyline, of `WIDTH` by `HEIGHT`, within these axes."""
        (first, last), (low, high) = steps, bounds
        across = (WIDTH - _LEFT - _MARGIN) / max(1, last - first)
        up = (HEIGHT - 2 * _MARGIN) / (high - low if high > low else 1)
        points = [
            f"{_LEFT + (step - first) * across:.1f},{HEIGHT - _MARGIN - (value - low) * up:.1f}"
            for step, value in self.points
        ]
        return " ".join(points if len(points) > 1 else 2 * points)  # alone it would not be drawn


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return about half of the points: of each four in a row the lowest and the highest, in their
    order; the first and the last one stay."""
    kept = points[:1]
    for start in range(1, len(points) - 1, 4):
        part = points[start : min(start + 4, len(points) - 1)]
        low, high = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept += [low] if low == high else sorted((low, high))
    return [*kept, points[-1]]
