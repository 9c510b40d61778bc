from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from aegis.evaluate.metrics import (
    Judged,
    decision_metrics,
    expected_calibration_error,
    macro_f1,
    paired_difference,
    unsafe_auc,
)
from aegis.model.calibration import fit, probabilities

RNG = np.random.default_rng(0)


def measured(truth: np.ndarray, predicted: list[int]) -> dict[str, Any]:
    return decision_metrics(Judged.likeliest(truth, np.eye(4)[predicted] * 0.94 + 0.015))


def test_rates_mean_what_their_names_say() -> None:
    truth = np.array([0, 0, 0, 0, 1, 2, 2, 3, 3, 3])
    found = measured(truth, [0, 0, 0, 3, 1, 0, 2, 3, 3, 0])
    assert found["n"] == 10
    assert found["accuracy"]["value"] == pytest.approx(0.7)
    assert found["false_positive_rate"] == found["miss_rate"]
    assert found["miss_rate"]["value"] == pytest.approx(2 / 5)
    assert found["miss_rate"]["n"] == 5
    assert found["over_refusal_rate"]["value"] == pytest.approx(1 / 4)
    assert found["confusion"]["counts"][2] == [1, 0, 1, 0]
    low, high = found["miss_rate"]["interval"]
    assert (low, high) == pytest.approx((0.0527, 0.8534), abs=1e-3)  # Clopper–Pearson, 2 of 5


def test_rates_go_by_what_was_decided_and_calibration_by_the_probabilities() -> None:
    truth = np.array([0, 0, 1, 3])
    judged = Judged.likeliest(truth, np.eye(4)[[0, 0, 0, 0]] * 0.94 + 0.015)
    before = decision_metrics(judged)
    after = decision_metrics(replace(judged, predicted=np.array([0, 1, 1, 1])))
    assert [before[key]["value"] for key in ("miss_rate", "escalation_rate")] == [1, 0]
    assert [after[key]["value"] for key in ("miss_rate", "escalation_rate")] == [0, 0.75]
    assert after["over_refusal_rate"]["value"] == 0.5
    assert [after[key] for key in ("ece", "nll")] == [before[key] for key in ("ece", "nll")]


def test_macro_f1_is_sklearns_and_absent_classes_are_marked() -> None:
    truth, predicted = RNG.integers(0, 4, 200), RNG.integers(0, 4, 200)
    assert macro_f1(truth, predicted) == pytest.approx(f1_score(truth, predicted, average="macro"))
    found = measured(np.array([0, 0, 3]), [0, 1, 3])
    assert found["per_class"]["ESCALATION"] == {"absent": True, "n": 0, "predicted": 1}
    assert found["macro_f1"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    only_safe = measured(np.array([0, 0]), [0, 0])
    assert only_safe["miss_rate"] == {"value": None, "n": 0, "interval": None}


def test_intervals_hold_the_value_and_shrink_with_n() -> None:
    widths = []
    for n in (100, 1000):
        truth = RNG.integers(0, 4, n)
        predicted = np.where(RNG.random(n) < 0.8, truth, RNG.integers(0, 4, n))
        macro = measured(truth, predicted.tolist())["macro_f1"]
        low, high = macro["interval"]
        assert low < macro["value"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_the_temperature_undoes_overconfidence() -> None:
    logits = RNG.normal(size=(4000, 4))
    truth = np.array([RNG.choice(4, p=row) for row in probabilities(logits)])
    words = np.zeros(len(truth), dtype=bool)
    found = fit(3 * logits, None, words, truth)
    assert found.words.deep == pytest.approx(1 / 3, rel=0.1)
    assert found.spelled == found.words  # no prompt of that kind: the weights of all
    cooled = probabilities(found.combine(3 * logits, None, words))
    assert (
        expected_calibration_error(truth, cooled)
        < 0.05
        < expected_calibration_error(truth, probabilities(3 * logits))
    )


def test_each_kind_of_prompt_trusts_the_eye_that_sees() -> None:
    truth = RNG.integers(0, 4, 2000)
    sharp, noise = 3 * np.eye(4)[truth] + RNG.normal(size=(2000, 4)), RNG.normal(size=(2000, 4))
    spelled = np.arange(2000) % 2 == 0
    deep, lexical = (
        np.where(spelled[:, None], noise, sharp),
        np.where(spelled[:, None], sharp, noise),
    )
    found = fit(deep, lexical, spelled, truth)
    assert found.words.deep > 5 * found.words.lexical
    assert found.spelled.lexical > 5 * found.spelled.deep
    right = (found.combine(deep, lexical, spelled).argmax(1) == truth).mean()
    assert right > 0.9 > (deep.argmax(1) == truth).mean()


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_a_paired_difference_has_the_interval_of_the_normal_law_where_n_is_large(
    correlation: float,
) -> None:
    first = RNG.random(4000) < 0.6
    second = np.where(RNG.random(4000) < correlation, first, RNG.random(4000) < 0.5)
    found = paired_difference(first, second, 0.95)
    apart = second.astype(float) - first
    reach = 1.96 * apart.std() / np.sqrt(len(apart))
    assert found["value"] == pytest.approx(apart.mean())
    assert found["interval"] == pytest.approx(
        [apart.mean() - reach, apart.mean() + reach], abs=2e-3
    )


def test_a_paired_difference_of_few_is_never_certain() -> None:
    none = np.zeros(20, dtype=bool)
    low, high = paired_difference(none, none, 0.95)["interval"]
    assert low == pytest.approx(-high) == pytest.approx(-0.161, abs=0.001)  # Wilson, 0 of 20
    low, high = paired_difference(none, ~none, 0.95)["interval"]
    assert 0.7 < low < high == pytest.approx(1)


def test_the_auc_counts_pairs_and_needs_both_kinds() -> None:
    truth = np.array([0, 0, 0, 2, 3, 1])  # an escalation is neither
    allow = np.array([0.9, 0.5, 0.3, 0.4, 0.3, 0.99])
    probability = np.stack([allow, *[(1 - allow) / 3] * 3], axis=1)
    found = unsafe_auc(Judged.likeliest(truth, probability), 0.95)
    assert found["value"] == pytest.approx((2 + 2 + 0.5) / 6)
    assert found["n"] == 5
    low, high = found["interval"]
    assert low <= found["value"] <= high
    alone = unsafe_auc(Judged.likeliest(truth[:3], probability[:3]), 0.95)
    assert alone == {"value": None, "n": 3, "interval": None}
