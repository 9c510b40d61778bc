"""What happens while the SO(8) gates open: where α rises steepest, and loss and gradient norm
before, around and after.

A training's loss falls whether or not gates open, so that it is lower after the steepest ascent is
no evidence by itself. `compare` sets a training beside one whose gates stand open from the start,
step by step on the same batches; only that difference can be laid to annealing, and it may be none.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
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

FILE, PICTURE = "evidence.json", "phase_transition.png"
MEASURES = ("loss", "gradient_norm")
CONFIDENCE = 0.95
_PLATEAU = 1e-6  # rises closer to the largest than this share count as equal to it
_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean of n values and its bootstrap interval; `low` and `high` are None for fewer than two
    values."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def clear_of_zero(self) -> bool:
        """Zero lies outside."""
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
            "Loss falls in any training: a difference between these windows is no evidence for a phase transition unless "
            "a training without annealing (benchmarks/annealing.py) lacks it."
        )
        return {**asdict(self), "note": note}


def gather(history: Sequence[StepLog]) -> Evidence | None:
    """The evidence in a training's log; None where α is learned, not scheduled, or never rises."""
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
            _inside(logs, windows[name].first, windows[name].last) for name in ("before", "after")
        )
        for name in MEASURES:
            change[name] = difference(_values(before, name), _values(after, name))
    return Evidence(len(logs), alpha, g, windows, change)


def steepest(steps: Sequence[int], values: Sequence[float]) -> Ascent | None:
    """Where a series rises most; None if it never does."""
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
    """Before, around and after a transition, which may be another training's."""
    width = transition.last - transition.first + 1
    bounds = {
        "before": (transition.first - width, transition.first - 1),
        "around": (transition.first, transition.last),
        "after": (transition.last + 1, transition.last + width),
    }
    found = {}
    for name, (first, last) in bounds.items():
        if inside := _inside(logs, first, last):
            loss, norm = (interval(_values(inside, measure)) for measure in MEASURES)
            found[name] = Window(inside[0].step, inside[-1].step, loss, norm)
    return found


def interval(values: np.ndarray) -> Interval:
    """Mean of (n,) values and its percentile bootstrap interval, the same every time.

    Source:
        Efron, Bootstrap Methods: Another Look at the Jackknife, 1979.
    """
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, None, None, len(values))
    found = bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), len(values))


def difference(before: np.ndarray, after: np.ndarray) -> Interval:
    """Mean of `after` minus mean of `before`, each resampled by itself."""
    mean, n = float(after.mean() - before.mean()), min(len(before), len(after))
    if n < 2:
        return Interval(mean, None, None, n)
    found = bootstrap(
        (before, after),
        lambda one, two, axis: np.mean(two, axis=axis) - np.mean(one, axis=axis),
        confidence_level=CONFIDENCE,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), n)


@dataclass(frozen=True)
class Comparison:
    """Annealed minus not annealed, step by step on the same batches.

    Args:
        windows: loss and gradient norm differences `before`, `around` and `after` the annealed
            training's transition, and over the `whole`.
    """

    steps: int
    transition: Ascent
    windows: dict[str, Window]
    confidence: float = CONFIDENCE

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reading": self.reading()}

    def reading(self) -> str:
        """What the differences say, in words."""
        parts = [f"{name} {self._verdict(getattr(self._last, name))}" for name in MEASURES]
        return (
            f"annealed − constant over steps {self._last.first}–{self._last.last}: {'; '.join(parts)}. "
            "One seed: the intervals cover the batches, not other seeds"
        )

    @property
    def _last(self) -> Window:
        return self.windows.get("after", self.windows["whole"])

    @staticmethod
    def _verdict(found: Interval) -> str:
        if not found.clear_of_zero:
            return f"{found}, no difference can be seen"
        return f"{found}, {'higher' if found.mean > 0 else 'lower'} with annealing"


def compare(history_with: Sequence[StepLog], history_without: Sequence[StepLog]) -> Comparison:
    """Set an annealed training beside one without annealing.

    Raises:
        ValueError: if the first was not annealed, or the two did not take the same batches in the
            same order.
    """
    evidence = gather(history_with)
    if evidence is None:
        raise ValueError("the first history has no rising α; give an annealed training's")
    batches = [[(log.step, log.tokens) for log in logs] for logs in (history_with, history_without)]
    if batches[0] != batches[1]:
        raise ValueError(
            "the histories are of different batches; train both with the same seed, data and number of steps"
        )
    paired = [
        StepLog(
            a.step,
            a.loss - b.loss,
            {},
            a.tokens,
            0.0,
            a.gradient_norm - b.gradient_norm,
            a.learning_rate,
        )
        for a, b in zip(history_with, history_without, strict=True)
    ]
    loss, norm = (interval(_values(paired, measure)) for measure in MEASURES)
    windows = {
        **windows_of(paired, evidence.alpha),
        "whole": Window(paired[0].step, paired[-1].step, loss, norm),
    }
    return Comparison(len(paired), evidence.alpha, windows)


def write_evidence(folder: Path, history: Sequence[StepLog]) -> Evidence | None:
    """Write `evidence.json` and `phase_transition.png` beside the adapter, if α was annealed."""
    evidence = gather(history)
    if evidence is not None:
        (folder / FILE).write_text(to_json(evidence.to_json()), encoding="utf-8")
        draw_transition(folder / PICTURE, history, evidence)
    return evidence


def draw_transition(path: Path, history: Sequence[StepLog], evidence: Evidence) -> None:
    """Four panels over the steps: α and g, loss, gradient norm, dα/dt; the transition shaded, its
    steepest step marked."""
    figure = Figure(figsize=(9, 9), layout="constrained")
    panels = figure.subplots(4, 1, sharex=True)
    _draw_column(list(panels), history, evidence.alpha)
    panels[0].set(title=f"Opening of the SO(8) gates: steepest at step {evidence.alpha.step}")
    figure.savefig(path, dpi=110)


def draw_comparison(
    path: Path, history_with: Sequence[StepLog], history_without: Sequence[StepLog]
) -> None:
    """The four panels of both trainings side by side on the same axes, the annealed one's
    transition shaded in both.

    Raises:
        ValueError: as `compare`.
    """
    comparison = compare(history_with, history_without)
    figure = Figure(figsize=(14, 9), layout="constrained")
    panels = figure.subplots(4, 2, sharex=True, sharey="row")
    for column, (title, logs) in enumerate(
        {"annealed": history_with, "open from the start": history_without}.items()
    ):
        _draw_column([row[column] for row in panels], logs, comparison.transition)
        panels[0][column].set(title=title)
    figure.supxlabel(comparison.reading(), fontsize="small", wrap=True)
    figure.savefig(path, dpi=110)


def _draw_column(panels: Sequence[Axes], history: Sequence[StepLog], transition: Ascent) -> None:
    logs = [log for log in history if "alpha" in log.extra]
    steps, alphas = [log.step for log in logs], [log.extra["alpha"] for log in logs]
    panels[0].plot(steps, alphas, color="tab:blue", label="α")
    panels[0].plot(steps, [log.extra["g"] for log in logs], color="tab:orange", label="g = σ(α)")
    panels[0].set(ylabel="α, g")
    panels[0].legend(loc="upper left")
    for panel, measure, label in zip(panels[1:3], MEASURES, ("loss", "gradient norm"), strict=True):
        every, values = [log.step for log in history], _values(history, measure).tolist()
        panel.plot(every, values, color="tab:grey", alpha=0.4, linewidth=0.8)
        panel.plot(every, smooth(values), color="tab:red")
        panel.set(ylabel=f"{label} (and smoothed)")
    panels[3].plot(steps[1:], np.diff(alphas), color="tab:green")
    panels[3].set(ylabel="dα/dt, per step", xlabel="step")
    for panel in panels:
        panel.axvspan(transition.first, transition.last, color="tab:blue", alpha=0.1)
        panel.axvline(transition.step, color="grey", linestyle=":")
        panel.grid(alpha=0.3)


def _inside(logs: Sequence[StepLog], first: int, last: int) -> list[StepLog]:
    return [log for log in logs if first <= log.step <= last]


def _values(logs: Sequence[StepLog], measure: str) -> np.ndarray:
    return np.array([getattr(log, measure) for log in logs], dtype=float)
