"""SO(8) rotation gates: the mathematics, on torch alone."""

from aegis.so8.anneal import Schedule, alpha_at, opening
from aegis.so8.fold import fold, fold_output
from aegis.so8.gate import BLOCK, Gate
from aegis.so8.losses import So8Loss, So8LossSettings
from aegis.so8.rotation import GENERATORS, rotation

__all__ = [
    "BLOCK", "GENERATORS", "Gate", "Schedule", "So8Loss", "So8LossSettings", "alpha_at", "fold",
    "fold_output", "opening", "rotation",
]  # fmt: skip
