"""From so(8) generators to rotations, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 8
GENERATORS = BLOCK * (BLOCK - 1) // 2  # 28 = dim so(8)


def skew(generators: Tensor) -> Tensor:
    """Lay upper triangles (blocks, 28) out, row by row, as (blocks, 8, 8) with A.mT == -A.

    Raises:
        ValueError: if the last axis is not 28 long.
    """
    if generators.shape[-1] != GENERATORS:
        raise ValueError(
            f"generators must have {GENERATORS} numbers a block, "
            f"got shape {tuple(generators.shape)}"
        )
    row, column = torch.triu_indices(BLOCK, BLOCK, offset=1, device=generators.device)
    flat = generators.new_zeros(*generators.shape[:-1], BLOCK * BLOCK)
    flat = flat.index_copy(-1, row * BLOCK + column, generators)
    upper = flat.unflatten(-1, (BLOCK, BLOCK))
    return upper - upper.mT


def rotation(generators: Tensor) -> Tensor:
    """Map so(8) generators to rotations by the exact matrix exponential.

    It is taken in float64 (blocks are 8 by 8, so this costs little) and cast back: in float32 the
    squaring steps would lose the 1e-6 for generators of norm 10.

    Args:
        generators: (blocks, 28) floating, the upper triangle of each antisymmetric block by rows.

    Returns:
        (blocks, 8, 8) in float32, or float64 for float64 generators, with R.mT @ R = I to 1e-6 and
        det R = +1; zeros give the identity to the last bit.

    Source:
        Hall, Lie Groups, Lie Algebras, and Representations, ch. 3: exp is onto and smooth.
    """
    exact = torch.float32 if generators.device.type == "mps" else torch.float64
    result = torch.linalg.matrix_exp(skew(generators.to(exact)))
    return result.to(torch.float64 if generators.dtype == torch.float64 else torch.float32)
