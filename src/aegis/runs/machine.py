"""What the machine is doing now: processors, memory and GPUs, as far as it tells."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

T = TypeVar("T")


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
    """Percentages are of the whole machine; None where the system does not tell."""

    cpu_percent: float | None
    memory_percent: float | None
    process_rss_bytes: int | None
    gpus: tuple[Gpu, ...] = ()


def machine_state() -> MachineState:
    """One reading; it never raises, for no training may end over a sensor.

    `cpu_percent` covers the time since the thread's previous reading, so a thread's first one is
    None.
    """
    return MachineState(
        cpu_percent=_cpu_percent(),
        memory_percent=_told(lambda: psutil.virtual_memory().percent),
        process_rss_bytes=_told(lambda: psutil.Process().memory_info().rss),
        gpus=tuple(_gpus()),
    )


_before = threading.local()


def _cpu_percent() -> float | None:
    percent = _told(lambda: psutil.cpu_percent(interval=None))
    # psutil keeps each thread's last counters and has nothing to compare the first ones with: it answers 0.0.
    first, _before.read = not hasattr(_before, "read"), True
    return None if first else percent


def _gpus() -> list[Gpu]:
    """Every GPU that NVML can open; none without the optional package, its driver or a card."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:
        return []
    try:
        handles = [
            _told(lambda at=at: nvml.nvmlDeviceGetHandleByIndex(at))
            for at in range(nvml.nvmlDeviceGetCount())
        ]
        return [
            _gpu(nvml, index, handle) for index, handle in enumerate(handles) if handle is not None
        ]
    except Exception:
        return []
    finally:
        with contextlib.suppress(Exception):
            nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int, handle: Any) -> Gpu:
    memory = _told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    return Gpu(
        index=index,
        use_percent=_told(lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        memory_used_bytes=None if memory is None else int(memory.used),
        memory_total_bytes=None if memory is None else int(memory.total),
        temperature_c=_told(
            lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        ),
    )


def _told(read: Callable[[], T]) -> T | None:
    """The reading, or None: drivers, containers and virtual machines refuse with errors of every
    kind."""
    try:
        return read()
    except Exception:
        return None
