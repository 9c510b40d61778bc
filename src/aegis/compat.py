"""The class names of earlier AEGIS code, for what is there now.

| earlier name | now |
|---|---|
| `SelfVerification` | `aegis.protocol.checks.SelfVerification`, the same class |
| `BurnInProcessor` | `aegis.export.fold.fold_in_place` |
| `SO8TLoss` | `aegis.so8.So8Loss` |
| `SO8TThinkingModel` | `aegis.model.adapted.Adapted`, the same class; `attach` makes one |
| `SafetyAwareSO8TConfig` | `aegis.so8.So8LossSettings` |

What the earlier classes could do and nothing here does, such as splitting the hidden state into
four roles, is an unknown argument and raises TypeError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aegis.export.fold import fold_in_place
from aegis.model.adapted import Adapted
from aegis.protocol.checks import SelfVerification
from aegis.so8 import So8Loss, So8LossSettings

__all__ = [
    "BurnInProcessor",
    "SO8TLoss",
    "SO8TThinkingModel",
    "SafetyAwareSO8TConfig",
    "SelfVerification",
]

SO8TThinkingModel = Adapted
"""Now `aegis.model.adapted.Adapted`: a frozen base with LoRA, SO(8) gates, tag rows and a head.

It is not constructed from a model's name any more: `attach` makes one from a loaded base, and
`load_adapter` one that was trained. Private sections and answers are sampled by `aegis.engine`.
"""


class BurnInProcessor:
    """Now `aegis.export.fold.fold_in_place`: puts the gates' rotations into the weights.

    `aegis fold` writes a folder with a certificate that nothing has changed.
    """

    def burn_in(self, model: Adapted) -> Any:
        """Merge LoRA and fold every gate in float64; return the plain model. `model` is used up."""
        return fold_in_place(model)


@dataclass(frozen=True)
class SafetyAwareSO8TConfig:
    """Now `aegis.so8.So8LossSettings`: the weights of the loss terms beside the task's own.

    The defaults are the earlier ones; `So8LossSettings` and `train.loss` have 0 for all. The terms
    measure gates now, not four roles of the hidden state; `So8Loss` says which vanish.

    Args:
        nu_orth: of ‖RᵀR − I‖², the rotations' orthogonality defect.
        mu_norm: of the drift of hidden states' norms through a gate.
        rho_iso: of the gates' isometry defect.
        pet_lambda: of PET, the mean squared second difference of hidden states, in all three
            phases.
        pet: PET's weight in each phase (exploration, transition, stabilisation) instead of
            `pet_lambda` in all.

    Raises:
        ValueError: if a weight is negative.
    """

    nu_orth: float = 0.01
    mu_norm: float = 0.01
    rho_iso: float = 0.01
    pet_lambda: float = 0.1
    pet: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        self.to_settings()

    def to_settings(self) -> So8LossSettings:
        """Return the same weights as `So8Loss` takes them."""
        pet = self.pet or (self.pet_lambda, self.pet_lambda, self.pet_lambda)
        return So8LossSettings(
            pet=pet, nu_orth=self.nu_orth, mu_norm=self.mu_norm, rho_iso=self.rho_iso
        )


class SO8TLoss(So8Loss):
    """Now `aegis.so8.So8Loss`; it takes earlier settings, today's, or None for the task's alone."""

    def __init__(self, config: SafetyAwareSO8TConfig | So8LossSettings | None = None) -> None:
        super().__init__(
            config.to_settings() if isinstance(config, SafetyAwareSO8TConfig) else config
        )
