"""An annealed training beside one whose gates stand open from the start, step by step on the same
batches: only that difference can be laid to annealing, and it may be none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from aegis.train.evidence import (
    CONFIDENCE,
    MEASURES,
    Ascent,
    Interval,
    Window,
    draw_column,
    gather,
    interval,
    values_of,
    windows_of,
)
from aegis.train.loop import StepLog


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
        """Say in words what the differences are."""
        parts = [f"{name} {self._verdict(getattr(self._last, name))}" for name in MEASURES]
        return (
            f"annealed − constant over steps {self._last.first}–{self._last.last}: "
            f"{'; '.join(parts)}. One seed: the intervals cover the batches, not other seeds"
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
            "the histories are of different batches; train both with the same seed, data and "
            "number of steps"
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
    loss, norm = (interval(values_of(paired, measure)) for measure in MEASURES)
    windows = {
        **windows_of(paired, evidence.alpha),
        "whole": Window(paired[0].step, paired[-1].step, loss, norm),
    }
    return Comparison(len(paired), evidence.alpha, windows)


def draw_comparison(
    path: Path, history_with: Sequence[StepLog], history_without: Sequence[StepLog]
) -> None:
    """Draw both trainings' panels side by side, the annealed one's transition shaded.

    Raises:
        ValueError: as `compare`.
    """
    comparison = compare(history_with, history_without)
    figure = Figure(figsize=(14, 9), layout="constrained")
    panels = figure.subplots(4, 2, sharex=True, sharey="row")
    for column, (title, logs) in enumerate(
        {"annealed": history_with, "open from the start": history_without}.items()
    ):
        draw_column([row[column] for row in panels], logs, comparison.transition)
        panels[0][column].set(title=title)
    figure.supxlabel(comparison.reading(), fontsize="small", wrap=True)
    figure.savefig(path, dpi=110)
