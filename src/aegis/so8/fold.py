"""Gates become ordinary weights: the folded layer does what gate and layer did together."""

from __future__ import annotations

import torch
from torch import Tensor

from aegis.so8.gate import Gate, apply_blocks


@torch.no_grad()
def fold(weight: Tensor, gate: Gate) -> Tensor:
    """Return W' with x · W'ᵀ = gate(x) · Wᵀ, for a gate on the layer's input; a bias stays.

    gate(x) = x·M, hence W' = W·Mᵀ, computed in float64.

    Args:
        weight: (out, d) of any floating dtype, which is kept.

    Raises:
        ValueError: if the widths differ.
    """
    _check_width(weight.shape[1], gate)
    return apply_blocks(weight.double(), _matrix(gate).mT).to(weight.dtype)


@torch.no_grad()
def fold_output(
    weight: Tensor, gate: Gate, bias: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return (W', b') with x · W'ᵀ + b' = gate(x · Wᵀ + b), for a gate on the layer's output.

    W' = Mᵀ·W and b' = b·M, computed in float64.

    Args:
        weight: (d, in) of any floating dtype, which is kept.
        bias: (d,) or None.

    Raises:
        ValueError: if the widths differ.
    """
    _check_width(weight.shape[0], gate)
    matrix = _matrix(gate)
    folded = apply_blocks(weight.double().mT, matrix).mT.to(weight.dtype).contiguous()
    return folded, None if bias is None else apply_blocks(bias.double(), matrix).to(bias.dtype)


def _matrix(gate: Gate) -> Tensor:
    """Return M in float64, from the same generators and α."""
    twin = Gate(gate.features, mode=gate.mode).double()
    twin.generators.copy_(gate.generators.double())
    twin.alpha.copy_(gate.alpha.double())
    return twin.to(gate.generators.device).matrix()


def _check_width(width: int, gate: Gate) -> None:
    if width != gate.features:
        raise ValueError(f"the gate is {gate.features} wide, the layer's side is {width}")
