"""Read processors, memory and GPUs, as far as the system allows."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

T = TypeVar("T")
_previous_reading = threading.local()


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, numbered as `nvidia-smi` does; None where its driver does not tell."""

    index: int
    use_percent: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    temperature_c: float | None


@dataclass(frozen=True)
class MachineState:
    """Percentages are of the whole machine; None where the system does not tell.

    Args:
        own_cpu_percent: the part of `cpu_percent` that is this process's.
    """

    cpu_percent: float | None
    memory_percent: float | None
    process_rss_bytes: int | None
    gpus: tuple[Gpu, ...] = ()
    own_cpu_percent: float | None = None


def machine_state() -> MachineState:
    """Take one reading; never raise, for no training may end over a sensor.

    Of CPUs it covers the time since the thread's previous reading, so the first one is None.
    """
    percent, own = _cpu_percent()
    return MachineState(
        cpu_percent=percent,
        memory_percent=_try(lambda: psutil.virtual_memory().percent),
        process_rss_bytes=_try(lambda: psutil.Process().memory_info().rss),
        gpus=tuple(_gpus()),
        own_cpu_percent=own,
    )


def _cpu_percent() -> tuple[float | None, float | None]:
    """Return how much of all CPUs was in use, and how much of them by this process."""
    percent, count = _try(lambda: psutil.cpu_percent(interval=None)), _try(psutil.cpu_count) or 1
    # psutil keeps each thread's last counters; without any to compare with, it answers 0.0.
    before = getattr(_previous_reading, "times", None)
    now = _previous_reading.times = (time.monotonic(), time.process_time())
    if before is None or percent is None:
        return None, None
    elapsed, own = now[0] - before[0], now[1] - before[1]
    return percent, min(percent, round(100 * own / count / elapsed, 1) if elapsed else 0.0)


def _gpus() -> list[Gpu]:
    """Read every GPU that NVML can open; none without the package, its driver or a card."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:
        return []
    try:
        gpus = (_try(lambda i=i: _gpu(nvml, i)) for i in range(nvml.nvmlDeviceGetCount()))
        return [gpu for gpu in gpus if gpu is not None]
    except Exception:
        return []
    finally:
        with contextlib.suppress(Exception):
            nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = _try(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    return Gpu(
        index,
        use_percent=_try(lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        memory_used_bytes=None if memory is None else int(memory.used),
        memory_total_bytes=None if memory is None else int(memory.total),
        temperature_c=_try(
            lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        ),
    )


def _try(read: Callable[[], T]) -> T | None:
    """Return the reading, or None: drivers and containers refuse with errors of every kind."""
    try:
        return read()
    except Exception:
        return None
