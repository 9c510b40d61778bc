from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from aegis.data.clean.decisions import FOLDS, DecisionProbe, disagreements

TOPICS = ("bread flour oven", "boss salary vote", "court ruling seal", "bomb poison knife")


def made(n: int = 400) -> tuple[list[str], np.ndarray, np.ndarray]:
    random_ = random.Random(1)
    labels = np.array([number % 4 for number in range(n)])
    prompts = [" ".join(random_.choices(TOPICS[label].split(), k=6)) for label in labels]
    return prompts, labels, np.arange(n) // 4 % FOLDS


def test_planted_wrong_decisions_are_found() -> None:
    prompts, labels, folds = made()
    given = labels.copy()
    wrong = [8, 93, 210, 333]
    given[wrong] = (given[wrong] + 1) % 4
    probe = DecisionProbe.train(prompts, given, folds)
    assert probe is not None
    suggested = disagreements(given, probe.probabilities(prompts, folds))
    assert np.flatnonzero(suggested >= 0).tolist() == wrong
    assert suggested[wrong].tolist() == labels[wrong].tolist()


def test_no_judge_has_seen_what_it_judges() -> None:
    prompts, labels, folds = made()
    probe = DecisionProbe.train(prompts, labels, folds)
    others = labels.copy()
    others[folds == 2] = (others[folds == 2] + 1) % 4
    again = DecisionProbe.train(prompts, others, folds)
    assert probe is not None
    assert again is not None
    rows = folds == 2
    one, two = (p.probabilities(prompts, folds)[rows] for p in (probe, again))
    assert np.allclose(one, two)


def test_a_saved_probe_says_the_same(tmp_path: Path) -> None:
    prompts, labels, folds = made(200)
    probe = DecisionProbe.train(prompts, labels, folds)
    assert probe is not None
    probe.save(tmp_path / "probe.npz")
    loaded = DecisionProbe.load(tmp_path / "probe.npz")
    assert (loaded.probabilities(prompts, folds) == probe.probabilities(prompts, folds)).all()
    assert probe.probabilities(prompts, folds).sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_decision_that_one_fold_holds_alone_trains_nothing() -> None:
    prompts, labels, folds = made()
    folds[labels == 3] = 2
    assert DecisionProbe.train(prompts, labels, folds) is None


def test_too_few_of_a_decision_train_nothing() -> None:
    prompts, labels, folds = made(60)
    assert DecisionProbe.train(prompts, labels, folds) is None
    assert disagreements(np.array([], int), np.empty((0, 4))).tolist() == []
