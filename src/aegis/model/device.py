"""What the machine is good at: device, threads, fast precision, and giving memory back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from typing import Any, Literal

import torch

Autocast = Literal["auto", "off", "bfloat16"]


def pick_device() -> torch.device:
    """Return the first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_threads(threads: int) -> None:
    """Use this many CPU threads; 0 leaves torch's choice (one a core)."""
    if threads:
        torch.set_num_threads(threads)


def bfloat16_is_fast() -> bool:
    """Return whether the hardware multiplies bfloat16 itself, as AVX512-BF16 and AMX do."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def fast_dtype() -> torch.dtype:
    """Return bfloat16 where it is fast, else float32: for sampling, not for the last bits."""
    return torch.bfloat16 if bfloat16_is_fast() else torch.float32


def autocast(setting: Autocast, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Multiply matrices in bfloat16, weights as they are, if asked, or if `auto` and it is fast."""
    if setting == "off" or (setting == "auto" and not bfloat16_is_fast()):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def quick_attention(device: torch.device) -> str | None:
    """Return plain attention for CPUs (faster on short rows), None for the model's own choice."""
    return "eager" if device.type == "cpu" else None


def release_memory() -> None:
    """Give back memory that Python and the allocators hold but do not use.

    Stages follow one another in one process, and glibc keeps gigabytes of a finished training.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Give back what is free inside the C library's heap; takes milliseconds."""
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)


def limit_shape_cache() -> None:
    """Bound what torch and oneDNN keep for each shape of a product; call before the first product.

    By default up to half a megabyte in either of two caches of 1024 shapes, and a server meets new
    shapes for hours. What the user set stays.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "512")
