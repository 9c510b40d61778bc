from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import ArtifactError
from aegis.tune.objectives import (
    MEASURES,
    StudyObjective,
    TrainingRecord,
    arrival,
    convergence,
    normalised_loss,
    refuse_recall,
    stability,
    validation_loss,
)

NUMBERS = st.floats(-30, 30)
BONUSES = ("normalised_loss", "stability", "convergence", "arrival", "accuracy", "ece", "macro_f1")


def record(
    losses: list[float] | None = None, alphas: list[float] | None = None, *, right: float = 4.0
) -> TrainingRecord:
    decisions = np.arange(40) % 4
    return TrainingRecord(losses or [1.0], alphas or [], right * np.eye(4)[decisions], decisions)


@given(
    st.lists(NUMBERS, min_size=1, max_size=60),
    st.lists(NUMBERS, max_size=40),
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 3)), min_size=1),
)
def test_every_part_of_the_score_lies_between_0_and_1_and_the_score_between_0_and_12(
    losses: list[float], alphas: list[float], items: list[tuple[float, ...]]
) -> None:
    logits = np.array([item[:4] for item in items])
    made = TrainingRecord(losses, alphas, logits, np.array([int(item[4]) for item in items]))
    score = StudyObjective({"normalised_loss": 8, "stability": 2, "convergence": 2})
    measures = score.measure(made)
    assert measures.keys() == MEASURES.keys()
    assert all(0 <= measures[name] <= 1 + 1e-9 for name in BONUSES)
    (value,) = score.values(measures, pareto=False)
    assert 0 <= value <= 12
    assert score.values(measures, pareto=True) == [measures[name] for name in score.weights]


@given(st.lists(NUMBERS, min_size=2, max_size=30), st.floats(0.1, 100), NUMBERS)
def test_stability_and_convergence_do_not_depend_on_the_losss_unit(
    losses: list[float], scale: float, shift: float
) -> None:
    grid = [round(loss, 3) for loss in losses]  # no differences that vanish beside the shift
    moved = [round(scale, 2) * loss + round(shift, 2) for loss in grid]
    assert stability(record(grid)) == pytest.approx(stability(record(moved)), abs=1e-6)


def test_a_loss_that_only_falls_is_stable_and_one_that_only_rises_is_not() -> None:
    falls, rises = [5.0 - i / 10 for i in range(40)], [i / 10 for i in range(40)]
    assert (stability(record(falls)), stability(record(rises))) == (1.0, 0.0)
    assert (convergence(record(rises)), stability(record([1.0] * 40))) == (0.0, 0.0)


def test_an_early_fall_converges_sooner_than_a_late_one() -> None:
    early, late = [9.0] * 4 + [1.0] * 36, [9.0] * 36 + [1.0] * 4
    assert convergence(record(early)) == pytest.approx(0.9)
    assert convergence(record(late)) == pytest.approx(0.1)


def test_alpha_arrives_when_it_is_within_a_twentieth_of_its_way() -> None:
    assert arrival(record(alphas=[-5.0, 1.6, *[1.6] * 8])) == pytest.approx(0.8)
    assert arrival(record(alphas=[-5.0 + i * 0.66 for i in range(11)])) == pytest.approx(0.0)
    assert arrival(record()) == 0.0


def test_the_loss_is_that_of_the_right_decision() -> None:
    assert validation_loss(record(right=0.0)) == pytest.approx(math.log(4))
    assert normalised_loss(record(right=0.0)) == pytest.approx(0.0)
    assert normalised_loss(record(right=100.0)) == pytest.approx(1.0)
    assert normalised_loss(record(right=-9.0)) == 0.0


def test_recall_of_refuse_counts_refuse_alone() -> None:
    decisions = np.array([3, 3, 3, 3, 0, 1])
    logits = np.eye(4)[[3, 3, 3, 0, 3, 3]]
    assert refuse_recall(TrainingRecord([1.0], [], logits, decisions)) == 0.75


def test_a_training_without_validation_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text(json.dumps({"loss": 1.0}) + "\n")
    with pytest.raises(ArtifactError, match=r"data\.split\.validation"):
        TrainingRecord.read(tmp_path)


def test_directions_follow_the_weights_signs() -> None:
    objective = StudyObjective({"macro_f1": 1.0, "ece": -1.0})
    assert objective.directions(pareto=True) == ["maximize", "minimize"]
    assert objective.directions(pareto=False) == ["maximize"]
