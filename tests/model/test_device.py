from __future__ import annotations

import contextlib
import os

import pytest
import torch

from aegis.model import device


def test_bfloat16_is_used_where_asked_or_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(device, "bfloat16_is_fast", lambda fast=fast: fast)
        assert device.fast_dtype() == dtype
        assert isinstance(device.autocast("auto", cpu), contextlib.nullcontext) == (not fast)
        assert isinstance(device.autocast("off", cpu), contextlib.nullcontext)
        with device.autocast("bfloat16", cpu):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_what_the_user_set_for_the_shape_caches_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    device.limit_shape_cache()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "512"
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
