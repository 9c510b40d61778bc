from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.so8.rotation import BLOCK, GENERATORS, rotation, skew


@st.composite
def generators(draw: st.DrawFn, max_norm: float = 10.0) -> torch.Tensor:
    """Blocks of generators whose norm reaches up to `max_norm`."""
    seed = draw(st.integers(0, 2**31 - 1))
    norm = draw(st.floats(0, max_norm))
    raw = torch.randn(
        draw(st.integers(1, 6)), GENERATORS, generator=torch.Generator().manual_seed(seed)
    )
    return raw / raw.norm(dim=-1, keepdim=True) * norm


@settings(max_examples=200, deadline=None)
@given(generators())
def test_rotations_are_orthogonal_with_determinant_one(a: torch.Tensor) -> None:
    turned = rotation(a)
    assert turned.dtype == torch.float32
    assert float((turned.mT @ turned - torch.eye(BLOCK)).abs().max()) <= 1e-6
    torch.testing.assert_close(
        torch.linalg.det(turned.double()), torch.ones(len(a)).double(), atol=1e-5, rtol=0
    )


def test_zero_generators_give_the_identity_to_the_last_bit() -> None:
    assert torch.equal(rotation(torch.zeros(3, GENERATORS)), torch.eye(BLOCK).expand(3, -1, -1))


def test_skew_is_antisymmetric_and_row_by_row() -> None:
    blocks = skew(torch.arange(1.0, GENERATORS + 1)[None])
    assert torch.equal(blocks.mT, -blocks)
    assert blocks[0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert blocks[0, 1, 2] == 8


def test_a_plane_rotation_is_the_known_one() -> None:
    a = torch.zeros(1, GENERATORS, dtype=torch.float64)
    a[0, 0] = 0.3
    expected = torch.tensor([[0.3]], dtype=torch.float64)
    assert torch.allclose(
        rotation(a)[0, :2, :2],
        torch.stack(
            [
                torch.cat([expected.cos(), expected.sin()], 1)[0],
                torch.cat([-expected.sin(), expected.cos()], 1)[0],
            ]
        ),
    )


def test_gradients_are_right() -> None:
    a = torch.randn(2, GENERATORS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation, (a,))


def test_a_wrong_width_is_told() -> None:
    with pytest.raises(ValueError, match="28 numbers a block"):
        rotation(torch.zeros(2, 27))
