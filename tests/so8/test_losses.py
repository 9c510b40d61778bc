from __future__ import annotations

import pytest
import torch

from aegis.so8 import Gate, So8Loss, So8LossSettings
from aegis.so8.losses import norm_drift, orthogonality_defect, pet_weight, second_difference


def test_straight_lines_cost_no_pet_and_padding_does_not_count() -> None:
    line = torch.arange(6.0)[None, :, None] * torch.randn(2, 1, 3)
    assert float(second_difference(line)) == pytest.approx(0, abs=1e-10)
    bent = line.clone()
    bent[:, 4:] = 100
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2)
    assert float(second_difference(bent, mask)) == pytest.approx(0, abs=1e-10)
    assert float(second_difference(bent)) > 1
    assert float(second_difference(line[:, :2])) == 0


def test_pet_has_three_phases() -> None:
    settings = So8LossSettings(pet=(0.1, 0.2, 0.3), pet_phases=(0.25, 0.5))
    assert [pet_weight(settings, p) for p in (0, 0.24, 0.25, 0.49, 0.5, 1)] == [
        0.1,
        0.1,
        0.2,
        0.2,
        0.3,
        0.3,
    ]


@torch.no_grad()
def test_terms_that_vanish_by_construction_vanish() -> None:
    geodesic = Gate(16, alpha=0.5, std=1.0)
    assert float(orthogonality_defect(geodesic.rotation())) < 1e-10
    assert float(orthogonality_defect(geodesic.matrix())) < 1e-10
    assert float(norm_drift(geodesic.matrix())) < 1e-10
    additive = Gate(16, mode="additive", alpha=0.5, std=1.0)
    assert float(orthogonality_defect(additive.rotation())) < 1e-10
    assert float(norm_drift(additive.matrix())) > 1e-2
    assert float(orthogonality_defect(additive.matrix())) > 1e-2


def test_the_total_is_the_sum_of_its_weighted_terms() -> None:
    gates = [Gate(16, mode="additive", alpha=0.5, std=1.0)]
    settings = So8LossSettings(pet=(0.5, 0.5, 0.5), nu_orth=1, mu_norm=2, rho_iso=3)
    total, parts = So8Loss(settings)(
        torch.tensor(1.5), progress=0.1, gates=gates, hidden=torch.randn(2, 5, 16)
    )
    assert set(parts) == {"task", "pet", "orth", "norm", "iso"}
    assert float(total.detach()) == pytest.approx(sum(parts.values()))
    total.backward()
    assert gates[0].generators.grad is not None


def test_without_weights_only_the_task_is_left() -> None:
    total, parts = So8Loss()(
        torch.tensor(0.7), progress=1.0, gates=[Gate(8)], hidden=torch.randn(1, 4, 8)
    )
    assert parts == {"task": pytest.approx(0.7)}
    assert float(total) == pytest.approx(0.7)


def test_impossible_weights_are_told() -> None:
    with pytest.raises(ValueError, match=">= 0"):
        So8LossSettings(nu_orth=-1)
    with pytest.raises(ValueError, match="pet_phases"):
        So8LossSettings(pet_phases=(0.7, 0.3))
