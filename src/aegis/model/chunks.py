"""Work on vocabulary-wide rows a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Rows whose vocabulary logits are in memory at once: few enough for a processor's cache.
CHUNK = 64


def in_chunks(score: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
    """Return what `score` makes of the rows, `CHUNK` at a time, concatenated.

    Where gradients are taken a chunk is computed again in the backward pass: that costs less than
    to fetch the logits of all rows from memory, and needs none of it.

    Args:
        rows: (n, …) each; `score` gets the same stretch of every one and returns (stretch, …)
            tensors.
    """
    pieces = zip(*(tensor.split(CHUNK) for tensor in rows), strict=True)
    options: Any = {"use_reentrant": False, "preserve_rng_state": False}
    if torch.is_grad_enabled():
        scores = [checkpoint(score, *piece, **options) for piece in pieces]
    else:
        scores = [score(*piece) for piece in pieces]
    return tuple(torch.cat(column) for column in zip(*scores, strict=True))
