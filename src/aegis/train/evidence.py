"""What happens while the SO(8) gates open: where α rises steepest, and loss and gradient norm
before, around and after.

A training's loss falls whether or not gates open, so that it is lower after the steepest ascent is
no evidence by itself: `benchmarks/annealing.py` sets a training beside one without annealing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import bootstrap

from aegis.storage.files import to_json
from aegis.train.figures import smooth
from aegis.train.loop import StepLog

EVIDENCE_FILE, EVIDENCE_PICTURE = "evidence.json", "phase_transition.png"
MEASURES = ("loss", "gradient_norm")
CONFIDENCE = 0.95
_PLATEAU = 1e-6  # rises closer to the largest than this share count as equal to it
_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean of n values and its bootstrap interval; no bounds for fewer than two values."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def clear_of_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:+.4f} (n = {self.n})"
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True)
class Ascent:
    """The steepest ascent of a series that has one value a step.

    Args:
        step: the step at whose beginning the value had just risen most; the middle one where
            several rose equally.
        rate: the rise there, per step.
        steps_at_peak: how many steps rose equally; the whole annealing for a linear schedule, which
            has no steepest point.
        first, last: the first and the last step that rose at least half as fast: the transition.
    """

    step: int
    rate: float
    steps_at_peak: int
    first: int
    last: int


@dataclass(frozen=True)
class Window:
    """Steps `first` to `last`, both included, and what was measured there."""

    first: int
    last: int
    loss: Interval
    gradient_norm: Interval


@dataclass(frozen=True)
class Evidence:
    """What one training shows.

    Args:
        steps: how many were taken.
        alpha, g: their steepest ascents.
        windows: `before`, `around` and `after` the transition of α, the outer two as long as the
            inner one where there is room; those without any step are absent.
        change: of each measure from `before` to `after`.
        confidence: of every interval. Intervals are percentile bootstraps over steps, which take
            steps as exchangeable within a window: a trend inside one widens them, likeness of
            neighbouring steps narrows them.
    """

    steps: int
    alpha: Ascent
    g: Ascent
    windows: dict[str, Window]
    change: dict[str, Interval]
    confidence: float = CONFIDENCE

    def to_json(self) -> dict[str, Any]:
        note = (
            "Loss falls in any training: a difference between these windows is no evidence for a "
            "phase transition unless a training without annealing (benchmarks/annealing.py) "
            "lacks it."
        )
        return {**asdict(self), "note": note}


def gather(history: Sequence[StepLog]) -> Evidence | None:
    """Return what a log shows; None where α is learned, not scheduled, or never rises."""
    logs = [log for log in history if "alpha" in log.extra]
    if len(logs) < 2 or len(logs) < len(history):
        return None
    steps = [log.step for log in logs]
    alpha, g = (steepest(steps, [log.extra[name] for log in logs]) for name in ("alpha", "g"))
    if alpha is None or g is None:
        return None
    windows = windows_of(logs, alpha)
    change = {}
    if {"before", "after"} <= windows.keys():
        before, after = (
            steps_between(logs, windows[name].first, windows[name].last)
            for name in ("before", "after")
        )
        for name in MEASURES:
            change[name] = difference(values_of(before, name), values_of(after, name))
    return Evidence(len(logs), alpha, g, windows, change)


def steepest(steps: Sequence[int], values: Sequence[float]) -> Ascent | None:
    """Return where a series rises most; None if it never does."""
    rises = [after - before for before, after in itertools.pairwise(values)]
    peak = max(rises, default=0.0)
    if peak <= 0:
        return None
    at_peak = [place for place, rise in enumerate(rises) if rise >= peak * (1 - _PLATEAU)]
    place = at_peak[(len(at_peak) - 1) // 2]
    first = last = place
    while first > 0 and rises[first - 1] >= peak / 2:
        first -= 1
    while last + 1 < len(rises) and rises[last + 1] >= peak / 2:
        last += 1
    return Ascent(steps[place + 1], peak, len(at_peak), steps[first + 1], steps[last + 1])


def windows_of(logs: Sequence[StepLog], transition: Ascent) -> dict[str, Window]:
    """Return before, around and after a transition, which may be another training's."""
    width = transition.last - transition.first + 1
    bounds = {
        "before": (transition.first - width, transition.first - 1),
        "around": (transition.first, transition.last),
        "after": (transition.last + 1, transition.last + width),
    }
    windows = {}
    for name, (first, last) in bounds.items():
        if inside := steps_between(logs, first, last):
            loss, norm = (interval(values_of(inside, measure)) for measure in MEASURES)
            windows[name] = Window(inside[0].step, inside[-1].step, loss, norm)
    return windows


def interval(values: np.ndarray) -> Interval:
    """Return the mean of (n,) values and its percentile bootstrap interval, the same every time.

    Source:
        Efron, Bootstrap Methods: Another Look at the Jackknife, 1979.
    """
    return _bootstrapped((values,), np.mean)


def difference(before: np.ndarray, after: np.ndarray) -> Interval:
    """Return the mean of `after` minus the mean of `before`, each resampled by itself."""
    return _bootstrapped(
        (before, after), lambda x, y, axis=None: np.mean(y, axis=axis) - np.mean(x, axis=axis)
    )


def _bootstrapped(samples: tuple[np.ndarray, ...], statistic: Callable[..., Any]) -> Interval:
    mean, n = float(statistic(*samples)), min(map(len, samples))
    if n < 2:
        return Interval(mean, None, None, n)
    bounds = bootstrap(
        samples,
        statistic,
        confidence_level=CONFIDENCE,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(bounds.low), float(bounds.high), n)


def write_evidence(folder: Path, history: Sequence[StepLog]) -> Evidence | None:
    """Write `evidence.json` and `phase_transition.png` beside the adapter, if α was annealed."""
    evidence = gather(history)
    if evidence is not None:
        (folder / EVIDENCE_FILE).write_text(to_json(evidence.to_json()), encoding="utf-8")
        draw_transition(folder / EVIDENCE_PICTURE, history, evidence)
    return evidence


def draw_transition(path: Path, history: Sequence[StepLog], evidence: Evidence) -> None:
    """Draw α and g, loss, gradient norm and dα/dt over the steps, the transition shaded."""
    figure = Figure(figsize=(9, 9), layout="constrained")
    panels = figure.subplots(4, 1, sharex=True)
    draw_column(list(panels), history, evidence.alpha)
    panels[0].set(title=f"Opening of the SO(8) gates: steepest at step {evidence.alpha.step}")
    figure.savefig(path, dpi=110)


def draw_column(panels: Sequence[Axes], history: Sequence[StepLog], transition: Ascent) -> None:
    logs = [log for log in history if "alpha" in log.extra]
    steps, alphas = [log.step for log in logs], [log.extra["alpha"] for log in logs]
    panels[0].plot(steps, alphas, color="tab:blue", label="α")
    panels[0].plot(steps, [log.extra["g"] for log in logs], color="tab:orange", label="g = σ(α)")
    panels[0].set(ylabel="α, g")
    panels[0].legend(loc="upper left")
    for panel, measure, label in zip(panels[1:3], MEASURES, ("loss", "gradient norm"), strict=True):
        every, values = [log.step for log in history], values_of(history, measure).tolist()
        panel.plot(every, values, color="tab:grey", alpha=0.4, linewidth=0.8)
        panel.plot(every, smooth(values), color="tab:red")
        panel.set(ylabel=f"{label} (and smoothed)")
    panels[3].plot(steps[1:], np.diff(alphas), color="tab:green")
    panels[3].set(ylabel="dα/dt, per step", xlabel="step")
    for panel in panels:
        panel.axvspan(transition.first, transition.last, color="tab:blue", alpha=0.1)
        panel.axvline(transition.step, color="grey", linestyle=":")
        panel.grid(alpha=0.3)


def steps_between(logs: Sequence[StepLog], first: int, last: int) -> list[StepLog]:
    return [log for log in logs if first <= log.step <= last]


def values_of(logs: Sequence[StepLog], measure: str) -> np.ndarray:
    return np.array([getattr(log, measure) for log in logs], dtype=float)
