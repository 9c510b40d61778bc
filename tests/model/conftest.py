from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.model.base import Base, resolve_base

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes; run: pip install bitsandbytes",
)
# NF4's blocks are 64 wide and its CPU kernels like multiples of 32.
WIDE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(scope="module", params=["llama", "phi3", "qwen2"])
def base(request: pytest.FixtureRequest, save_base: Callable[..., Path]) -> Base:
    return resolve_base(str(save_base(request.param, **WIDE)))


@pytest.fixture(scope="module")
def llama(save_base: Callable[..., Path]) -> Base:
    return resolve_base(str(save_base("llama", **WIDE)))
