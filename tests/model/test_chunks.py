"""Chunks change where work is done, not what comes of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aegis.model.chunks import CHUNK, in_chunks


def score(weight: Tensor, seen: list[int]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def run(rows: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(rows))
        logits = rows @ weight
        return logits.gather(1, wanted.unsqueeze(1)).squeeze(1), logits.logsumexp(-1)

    return run


@pytest.mark.parametrize("count", [0, 1, CHUNK, 2 * CHUNK + 7])
def test_values_and_gradients_are_those_of_the_whole(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    wanted = torch.randint(0, 11, (count,), generator=generator)
    weight = torch.randn(5, 11, generator=generator, dtype=torch.float64)
    gradients, values = [], []
    for chunked in (True, False):
        before, leaf, seen = (
            rows.clone().requires_grad_(),
            weight.clone().requires_grad_(),
            list[int](),
        )
        run = score(leaf, seen)
        chosen, total = in_chunks(run, before, wanted) if chunked else run(before, wanted)
        (chosen * 2 - total).sum().backward()
        gradients.append((before.grad, leaf.grad))
        values.append((chosen.detach(), total.detach()))
        assert not chunked or max(seen) <= CHUNK
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_nothing_is_computed_twice_without_gradients() -> None:
    seen: list[int] = []
    with torch.no_grad():
        in_chunks(
            score(torch.ones(5, 11), seen), torch.ones(100, 5), torch.zeros(100, dtype=torch.long)
        )
    assert sum(seen) == 100
