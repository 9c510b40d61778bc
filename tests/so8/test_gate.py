from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.so8 import Gate, fold
from aegis.so8.gate import Mode

MODES: tuple[Mode, ...] = ("geodesic", "additive")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(-5, 5), st.floats(0, 2))
def test_a_geodesic_gate_keeps_norms(seed: int, alpha: float, std: float) -> None:
    torch.manual_seed(seed)
    gate = Gate(24, alpha=alpha, std=std)
    hidden = torch.randn(5, 24)
    torch.testing.assert_close(gate(hidden).norm(dim=-1), hidden.norm(dim=-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_closed_gate_changes_no_bit(mode: Mode, dtype: torch.dtype) -> None:
    gate = Gate(64, mode=mode, alpha=-math.inf, std=1.0)
    hidden = torch.randn(7, 64).to(dtype)
    assert torch.equal(gate(hidden), hidden)


def test_a_new_geodesic_gate_is_the_identity_however_open() -> None:
    hidden = torch.randn(3, 16)
    assert torch.equal(Gate(16, alpha=1.618)(hidden), hidden)


def test_the_additive_gate_is_the_first_formula() -> None:
    torch.manual_seed(3)
    gate = Gate(8, mode="additive", alpha=0.2, std=0.5)
    weight = torch.randn(4, 8, dtype=torch.float64)
    expected = (
        weight + torch.sigmoid(torch.tensor(0.2)).double() * weight @ gate.double().rotation()[0].mT
    )
    torch.testing.assert_close(fold(weight, gate), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_gate_gradients_are_right(mode: Mode) -> None:
    gate = Gate(8, mode=mode, alpha=0.3, std=0.5, learn_alpha=True).double()
    hidden = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)

    def run(h: torch.Tensor, generators: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(gate, {"generators": generators, "alpha": alpha}, (h,))

    assert torch.autograd.gradcheck(run, (hidden, gate.generators, gate.alpha))


@pytest.mark.parametrize("width", [0, 12, 7])
def test_a_width_that_is_no_multiple_of_8_is_told(width: int) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        Gate(width)
