from __future__ import annotations

import math

import pytest
import torch

from aegis.errors import AegisError
from aegis.export.certificate import DecisionAgreement, compare, measure, probe_texts, record


def test_agreement_is_weighed_by_position_and_not_by_text() -> None:
    same = torch.tensor([[0.0, 1.0]]).repeat(30, 1)
    first, second = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.0]])
    agreement = measure([(same, same), (first, second)], remedy="")
    assert agreement.positions == 31
    assert agreement.max_abs_logit_difference == pytest.approx(math.log(3))
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)  # (1/4, 3/4) from a fair coin
    assert agreement.max_kl == pytest.approx(kl)
    assert agreement.kl == pytest.approx(kl / 31)
    assert agreement.top1_agreement == pytest.approx(30 / 31)


def test_logits_that_are_not_finite_end_it() -> None:
    bad = torch.tensor([[0.0, math.inf]])
    with pytest.raises(AegisError, match="logits that are not finite in float16"):
        measure([(bad, bad)], remedy="not finite in float16")


def test_recorded_logits_are_compared_in_order(tmp_path) -> None:
    probes = probe_texts()[:2]
    logits = [torch.randn(3, 5), torch.randn(4, 5)]
    certificate = compare(record(tmp_path, logits), logits, dtype="float32", probes=probes)
    assert certificate.max_abs_logit_difference == 0
    assert (certificate.positions, certificate.top1_agreement) == (7, 1.0)
    assert sum(certificate.languages.values()) == certificate.probes == 2
    assert certificate.to_json()["compared"] == ["live", "folded"]


def test_decisions_are_compared_by_their_chances() -> None:
    one = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    two = one + torch.tensor([[5.0], [0.0]])  # a shift of all four is none
    assert DecisionAgreement.of(one, two).max_abs_probability_difference < 1e-12
    two[1, 3] = 2.0
    agreement = DecisionAgreement.of(one, two)
    assert (agreement.prompts, agreement.same_decision) == (2, 0.5)
    chances = (one[1].softmax(-1) - two[1].softmax(-1)).abs().max()
    assert agreement.max_abs_probability_difference == pytest.approx(float(chances))
