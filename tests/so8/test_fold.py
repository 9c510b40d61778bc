from __future__ import annotations

import pytest
import torch

from aegis.so8 import Gate, fold, fold_output
from aegis.so8.gate import Mode

MODES: tuple[Mode, ...] = ("geodesic", "additive")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_folding_is_rotating_the_input(mode: Mode, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    gate = Gate(16, mode=mode, alpha=0.4, std=0.7)
    layer = torch.nn.Linear(16, 5).to(dtype)
    x = torch.randn(3, 16, dtype=dtype)
    folded = torch.nn.functional.linear(x, fold(layer.weight, gate), layer.bias)
    assert folded.dtype == dtype
    torch.testing.assert_close(folded, layer(gate(x)), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_folding_is_rotating_the_output(mode: Mode, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    gate = Gate(16, mode=mode, alpha=0.4, std=0.7)
    layer = torch.nn.Linear(5, 16, bias=bias).to(dtype)
    x = torch.randn(3, 5, dtype=dtype)
    weight, new_bias = fold_output(layer.weight, gate, layer.bias)
    folded = torch.nn.functional.linear(x, weight, new_bias)
    torch.testing.assert_close(folded, gate(layer(x)), atol=TOLERANCE[dtype], rtol=0)


def test_folding_the_wrong_width_is_told() -> None:
    with pytest.raises(ValueError, match="16 wide"):
        fold(torch.zeros(3, 8), Gate(16))
