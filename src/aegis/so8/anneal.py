"""How α moves from closed (−5) to open (φ = 1.618…) over the training steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2
Shape = Literal["sigmoid", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """α as a function of the step: `start` in the warm-up, `end` after the annealing.

    Raises:
        ValueError: if a number of steps is negative, the steepness not positive, the shape unknown.
    """

    annealing_steps: int
    warmup_steps: int = 0
    shape: Shape = "sigmoid"
    start: float = -5.0
    end: float = GOLDEN_RATIO
    steepness: float = 12.0

    def __post_init__(self) -> None:
        if self.annealing_steps < 0 or self.warmup_steps < 0:
            raise ValueError(
                f"anneal steps must be >= 0, got {self.warmup_steps} and {self.annealing_steps}"
            )
        if self.shape not in get_args(Shape):
            raise ValueError(
                f"anneal shape must be one of {', '.join(get_args(Shape))}, got {self.shape!r}"
            )
        if not self.steepness > 0:
            raise ValueError(f"anneal steepness must be > 0, got {self.steepness}")


def alpha_at(schedule: Schedule, step: int) -> float:
    """Return α at a step: `start` and `end` exactly outside the annealing."""
    done = step - schedule.warmup_steps
    if done >= schedule.annealing_steps:
        return schedule.end
    if done <= 0:
        return schedule.start
    share = _share(schedule, done / schedule.annealing_steps)
    return schedule.start + (schedule.end - schedule.start) * share


def opening(alpha: float) -> float:
    """Return g = σ(α), without overflow for any finite α."""
    return 1 / (1 + math.exp(-alpha)) if alpha >= 0 else math.exp(alpha) / (1 + math.exp(alpha))


def _share(schedule: Schedule, t: float) -> float:
    """Return how far α has come, in [0, 1], at share t of the annealing."""
    if schedule.shape == "linear":
        return t
    if schedule.shape == "cosine":
        return (1 - math.cos(math.pi * t)) / 2
    low, high = opening(-schedule.steepness / 2), opening(schedule.steepness / 2)
    return (opening(schedule.steepness * (t - 0.5)) - low) / (high - low)
