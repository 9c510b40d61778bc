"""Work on vocabulary-wide rows a few at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 64
"""Rows whose vocabulary logits are in memory at once: few enough to stay in a processor's cache."""


def in_chunks(score: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
    """What `score` makes of the rows, `CHUNK` at a time, put together again.

    Where gradients are taken a chunk is computed again in the backward pass: that costs less than
    to fetch the logits of all rows from memory, and needs none of it.

    Args:
        rows: (n, …) each; `score` gets the same stretch of every one and returns (stretch, …)
            tensors.
    """
    pieces = zip(*(tensor.split(CHUNK) for tensor in rows), strict=True)
    if torch.is_grad_enabled():
        found = [
            checkpoint(score, *piece, use_reentrant=False, preserve_rng_state=False)
            for piece in pieces
        ]
    else:
        found = [score(*piece) for piece in pieces]
    return tuple(torch.cat(column) for column in zip(*found, strict=True))
