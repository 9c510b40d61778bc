"""What the machine is good at: device, threads, and which precision is fast on it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from typing import Any, Literal

import torch

Autocast = Literal["auto", "off", "bfloat16"]


def pick_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_threads(threads: int) -> None:
    """Use this many CPU threads; 0 leaves torch's choice (one a core)."""
    if threads:
        torch.set_num_threads(threads)


def bfloat16_is_fast() -> bool:
    """True where the hardware multiplies bfloat16 itself: most CUDA cards of today, CPUs with
    AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def autocast(setting: Autocast, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in bfloat16 while weights stay as they are, if asked, or if `auto` and the
    hardware is made for it."""
    if setting == "off" or (setting == "auto" and not bfloat16_is_fast()):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def quick_attention(device: torch.device) -> str | None:
    """Plain attention on CPUs, where it is faster than the fused one on short rows; None for the
    model's own choice."""
    return "eager" if device.type == "cpu" else None


def release_memory() -> None:
    """Memory that Python and the allocators hold but do not use goes back to the system: stages
    follow one another in one process, and glibc keeps gigabytes of a finished training
    otherwise."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """What is free inside the C library's heap goes back to the system; a matter of
    milliseconds."""
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)


def limit_shape_cache() -> None:
    """Bound what torch and oneDNN keep for each shape of a product that they have met: up to half a
    megabyte in either of two caches of 1024 shapes by default, and a server meets new ones for
    hours. To be called before the first product; what the user set stays."""
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "512")


def fast_dtype() -> torch.dtype:
    """bfloat16 where it is fast, float32 elsewhere: for sampling, where the last bits do not
    matter."""
    return torch.bfloat16 if bfloat16_is_fast() else torch.float32
