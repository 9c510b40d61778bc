"""What a trial is worth: measures of a finished training, and their weighted sums.

docs/tuning.md has the formulas.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aegis.data.records import read_rows
from aegis.errors import ArtifactError, ConfigError
from aegis.evaluate.metrics import expected_calibration_error, macro_f1
from aegis.model.calibration import probabilities
from aegis.protocol.decisions import NAMES, Decision

PARTS = 10  # stretches of a training whose mean losses are compared
Direction = Literal["maximize", "minimize"]
_NEAR = 0.05  # share of the way to its end at which α counts as arrived
_FALL = 0.9  # share of the loss's whole fall after which it counts as converged


@dataclass(frozen=True)
class TrainingRecord:
    """What a finished training left behind.

    Args:
        losses: of every step.
        alphas: of the gates at every step; empty where α is learned.
        logits: (n, 4) of the validation records' decisions; `decisions`: (n,) what is right.
    """

    losses: Sequence[float]
    alphas: Sequence[float]
    logits: np.ndarray
    decisions: np.ndarray

    @classmethod
    def read(cls, adapter: Path) -> TrainingRecord:
        """Read the artifact folder of SFT, or of what followed it.

        Raises:
            ArtifactError: if it has no validation records to be measured by.
        """
        try:
            steps, held_out = (
                read_rows(adapter / f"{name}.jsonl") for name in ("history", "validation")
            )
        except (OSError, json.JSONDecodeError) as error:
            raise ArtifactError(
                f"{adapter}: holds no history.jsonl and validation.jsonl ({error}); "
                "data.split.validation must leave records to measure by"
            ) from error
        return cls(
            [row["loss"] for row in steps],
            [row["alpha"] for row in steps if "alpha" in row],
            np.array([row["logits"] for row in held_out]),
            np.array([row["decision"] for row in held_out]),
        )

    @property
    def probabilities(self) -> np.ndarray:
        return probabilities(self.logits)

    @property
    def course(self) -> list[float]:
        """Mean losses of the training's tenths."""
        parts = np.array_split(np.asarray(self.losses, dtype=float), PARTS)
        return [float(part.mean()) for part in parts if len(part)]


def validation_loss(record: TrainingRecord) -> float:
    """Return the mean −log p of the right decision on validation, in nats."""
    chances = record.probabilities[np.arange(len(record.decisions)), record.decisions]
    return float(-np.log(np.maximum(chances, 1e-12)).mean())


def normalised_loss(record: TrainingRecord) -> float:
    """Return 1 − loss / ln 4 within [0, 1]: 1 for no loss, 0 for no better than guessing."""
    return min(1.0, max(0.0, 1 - validation_loss(record) / math.log(len(NAMES))))


def stability(record: TrainingRecord) -> float:
    """Return falls / (falls + rises) of the training loss from tenth to tenth; 0 if it is flat."""
    changes = np.diff(record.course)
    total = float(np.abs(changes).sum())
    return float(-changes[changes < 0].sum()) / total if total else 0.0


def convergence(record: TrainingRecord) -> float:
    """Return the share of the tenths left when 90 % of the loss's whole fall is reached; else 0."""
    course = record.course
    fall = course[0] - min(course) if course else 0.0
    if fall <= 0:
        return 0.0
    reached = next(i for i, loss in enumerate(course) if course[0] - loss >= _FALL * fall)
    return 1 - reached / len(course)


def arrival(record: TrainingRecord) -> float:
    """Return the share of the steps left when α is within 5 % of its way to where it ends."""
    alphas = record.alphas
    if not alphas:
        return 0.0
    near = _NEAR * abs(alphas[-1] - alphas[0])
    reached = next(i for i, alpha in enumerate(alphas) if abs(alphas[-1] - alpha) <= near)
    return 1 - (reached + 1) / len(alphas)


def refuse_recall(record: TrainingRecord) -> float:
    """Return the share of true REFUSE that is decided so; 0 where there is none."""
    refuse = record.decisions == Decision.REFUSE
    chosen = record.logits.argmax(axis=1)
    return float((chosen[refuse] == Decision.REFUSE).mean()) if refuse.any() else 0.0


def _macro_f1(record: TrainingRecord) -> float:
    return macro_f1(record.decisions, record.logits.argmax(axis=1))


def _ece(record: TrainingRecord) -> float:
    return expected_calibration_error(record.decisions, record.probabilities)


def _accuracy(record: TrainingRecord) -> float:
    return float((record.logits.argmax(axis=1) == record.decisions).mean())


MEASURES: Mapping[str, Callable[[TrainingRecord], float]] = {
    "accuracy": _accuracy,
    "arrival": arrival,
    "convergence": convergence,
    "ece": _ece,
    "macro_f1": _macro_f1,
    "normalised_loss": normalised_loss,
    "refuse_recall": refuse_recall,
    "stability": stability,
    "validation_loss": validation_loss,
}


@dataclass(frozen=True)
class StudyObjective:
    """The sum of weight · measure, higher is better.

    Args:
        failed: what a trial that diverged or ran out of time or memory is worth; None: it is
            marked as failed and worth nothing.
    """

    weights: dict[str, float] = field(default_factory=dict)
    failed: float | None = None

    @classmethod
    def parse(cls, raw: dict[str, Any], where: str) -> StudyObjective:
        """Check `{measure: weight, …, failed: value}`.

        Raises:
            ConfigError: if a measure is unknown or a weight is no number.
        """
        weights, failed = {**raw}, None
        for name, value in raw.items():
            if name not in MEASURES and name != "failed":
                near = difflib.get_close_matches(str(name), MEASURES, n=1, cutoff=0)
                known = f"did you mean {near[0]}? ({', '.join(MEASURES)})"
                raise ConfigError(f"{where}: objective: {name} is not measured; {known}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not value:
                raise ConfigError(
                    f"{where}: objective: {name} must be a number other than 0, got {value!r}"
                )
        if "failed" in weights:
            failed = float(weights.pop("failed"))
        if not weights:
            raise ConfigError(f"{where}: objective must name a measure, as in {{accuracy: 1}}")
        return cls({name: float(weight) for name, weight in weights.items()}, failed)

    def measure(self, record: TrainingRecord) -> dict[str, float]:
        """Return every measure by name, those without a weight too."""
        return {name: function(record) for name, function in MEASURES.items()}

    def values(self, measures: Mapping[str, float], *, pareto: bool) -> list[float]:
        """Return the one weighted sum, or for a Pareto front each measure that has a weight."""
        if pareto:
            return [measures[name] for name in self.weights]
        return [sum(weight * measures[name] for name, weight in self.weights.items())]

    def directions(self, *, pareto: bool) -> list[Direction]:
        """Return Optuna's word for each of the values."""
        signs = self.weights.values() if pareto else [1.0]
        return ["maximize" if weight > 0 else "minimize" for weight in signs]
