from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from aegis.runs.machine import Gpu, MachineState, machine_state


class FakeNvml(SimpleNamespace):
    """Two GPUs; the second's temperature cannot be read. `open` counts initialisations not yet shut
    down."""

    NVML_TEMPERATURE_GPU = 0
    open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"handle {index}"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(used=3 << 30, total=8 << 30)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=87, memory=20)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        if handle == "handle 1":
            raise RuntimeError("Not Supported")
        return 71


def fail(*_: object) -> None:
    raise RuntimeError("Driver Not Loaded")


def test_a_gpu_whose_temperature_cannot_be_read_keeps_its_other_readings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    first, second = machine_state().gpus
    assert first == Gpu(0, 87.0, 3 << 30, 8 << 30, 71.0)
    assert second == replace(first, index=1, temperature_c=None)
    assert nvml.open == 0


def test_a_lost_gpu_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(index: int) -> str:
        if index == 0:
            raise RuntimeError("GPU is lost")
        return f"handle {index}"

    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(nvmlDeviceGetHandleByIndex=lost))
    assert [gpu.index for gpu in machine_state().gpus] == [1]


def test_the_first_cpu_reading_of_a_thread_is_not_reported() -> None:
    found: list[MachineState] = []
    thread = threading.Thread(target=lambda: found.extend([machine_state(), machine_state()]))
    thread.start()
    thread.join()
    assert found[0].cpu_percent is None
    assert found[1].cpu_percent is not None


def test_its_own_use_is_told_from_the_machines() -> None:
    machine_state()
    ended = time.process_time() + 0.3
    while time.process_time() < ended:
        pass
    busy = machine_state()
    time.sleep(0.3)
    idle = machine_state()
    assert None not in (busy.own_cpu_percent, busy.cpu_percent, idle.own_cpu_percent)
    assert 0 <= (idle.own_cpu_percent or 0) < (busy.own_cpu_percent or 0) <= (busy.cpu_percent or 0)
