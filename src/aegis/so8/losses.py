"""The SO8T loss: the task's own loss plus what keeps the gates well-behaved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aegis.so8.gate import BLOCK, Gate


@dataclass(frozen=True)
class So8LossSettings:
    """Weights of the extra terms; `pet` has one a phase: exploration, transition, stabilisation.

    Raises:
        ValueError: if a weight is negative or the phases do not grow inside (0, 1).
    """

    pet: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pet_phases: tuple[float, float] = (1 / 3, 2 / 3)
    nu_orth: float = 0.0
    mu_norm: float = 0.0
    rho_iso: float = 0.0

    def __post_init__(self) -> None:
        if min(*self.pet, self.nu_orth, self.mu_norm, self.rho_iso) < 0:
            raise ValueError("loss weights must be >= 0")
        first, second = self.pet_phases
        if not 0 < first <= second < 1:
            raise ValueError(
                f"pet_phases must satisfy 0 < first <= second < 1, got {self.pet_phases}"
            )


class So8Loss(nn.Module):
    """The sum task + λ_pet·PET + ν_orth·‖RᵀR−I‖² + μ_norm·norm drift + ρ_iso·isometry defect.

    Which terms vanish by construction: ‖RᵀR−I‖² under both gates, because R is an exact exponential
    (it is then a monitor of rounding); norm drift and isometry defect under the geodesic gate,
    because M itself is a rotation. Under the additive gate M = I + g·R, both are real costs.
    """

    def __init__(self, settings: So8LossSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or So8LossSettings()

    def forward(
        self,
        task: Tensor,
        *,
        progress: float,
        gates: Iterable[Gate] = (),
        hidden: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the total, and each term's weighted value by name but those of weight zero.

        Args:
            task: scalar, the loss that the trainer computed.
            progress: share of the training done, in [0, 1]; picks PET's phase.
            hidden: (batch, time, d) last hidden states, needed for PET only.
            mask: (batch, time), 1 where `hidden` belongs to a real token.
        """
        terms = self.terms(task, progress=progress, gates=gates, hidden=hidden, mask=mask)
        return summed(terms), {name: float(term.detach()) for name, term in terms.items()}

    def terms(
        self,
        task: Tensor,
        *,
        progress: float,
        gates: Iterable[Gate] = (),
        hidden: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return each weighted term, with gradients; arguments and names as in `forward`."""
        s, gates = self.settings, list(gates)
        terms: dict[str, Tensor] = {"task": task}
        if (weight := pet_weight(s, progress)) and hidden is not None:
            terms["pet"] = weight * second_difference(hidden, mask)
        if gates and s.nu_orth:
            rotations = [orthogonality_defect(gate.rotation()) for gate in gates]
            terms["orth"] = s.nu_orth * torch.stack(rotations).mean()
        if gates and s.mu_norm:
            drifts = [norm_drift(gate.matrix()) for gate in gates]
            terms["norm"] = s.mu_norm * torch.stack(drifts).mean()
        if gates and s.rho_iso:
            defects = [orthogonality_defect(gate.matrix()) for gate in gates]
            terms["iso"] = s.rho_iso * torch.stack(defects).mean()
        return terms


def summed(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the terms' sum in float32."""
    return torch.stack([term.float() for term in terms.values()]).sum()


def pet_weight(settings: So8LossSettings, progress: float) -> float:
    """Return λ_pet of the phase that `progress` (0 to 1) falls into."""
    first, second = settings.pet_phases
    return settings.pet[0 if progress < first else 1 if progress < second else 2]


def second_difference(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return PET: the mean of (h_{t+1} − 2h_t + h_{t−1})² where all three tokens are real, or 0.

    `hidden` is (batch, time, d), `mask` (batch, time), or None where all are real.
    """
    if hidden.shape[1] < 3:
        return hidden.new_zeros(())
    squared = (hidden[:, 2:] - 2 * hidden[:, 1:-1] + hidden[:, :-2]).float().pow(2).mean(-1)
    if mask is None:
        return squared.mean()
    real = (mask[:, 2:].bool() & mask[:, 1:-1].bool() & mask[:, :-2].bool()).to(squared.dtype)
    return (squared * real).sum() / real.sum().clamp(min=1)


def orthogonality_defect(matrix: Tensor) -> Tensor:
    """Return the mean over blocks of ‖MᵀM − I‖²_F, for (blocks, 8, 8)."""
    eye = torch.eye(BLOCK, dtype=matrix.dtype, device=matrix.device)
    return (matrix.mT @ matrix - eye).pow(2).sum((-1, -2)).mean()


def norm_drift(matrix: Tensor) -> Tensor:
    """Return (E‖h·M‖² / E‖h‖² − 1)² for white h, mean over (blocks, 8, 8): (tr(MᵀM)/8 − 1)²."""
    return (matrix.pow(2).sum((-1, -2)) / BLOCK - 1).pow(2).mean()
