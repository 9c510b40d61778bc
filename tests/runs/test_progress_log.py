from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest

from aegis.config import DurableSettings
from aegis.runs.events import Metrics, Progress, StageBegun, TrainingBegun
from aegis.runs.machine import Gpu, MachineState, machine_state
from aegis.runs.progress_log import FOLDER, SUMMARY, WARNINGS_KEPT, ProgressLog
from tests.runs.test_machine import FakeNvml, fail

CALM = MachineState(cpu_percent=20.0, memory_percent=40.0, process_rss_bytes=1 << 30)
NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=timezone(timedelta(hours=9)))


class Bench:
    """A log whose clocks and machine the test moves by hand."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder / FOLDER
        self.clock_s, self.wall, self.machine, self.probes = 1000.0, NOON, CALM, 0
        self.stage = ""
        self.said: list[str] = []
        self.log = ProgressLog(
            folder,
            DurableSettings(**settings),
            say=self.said.append,
            clock=lambda: self.clock_s,
            now=lambda: self.wall,
            probe=self._probe,
        )

    def _probe(self) -> MachineState:
        self.probes += 1
        return self.machine

    def wait(self, seconds: float) -> None:
        self.clock_s += seconds
        self.wall += timedelta(seconds=seconds)

    def step(self, seconds: float, stage: str = "training", **measured: Any) -> None:
        """A step that measured this; without anything measured, progress of a bar."""
        self.wait(seconds)
        if stage != self.stage:
            self.stage = stage
            self.log(StageBegun(stage=stage))
        if not measured:
            self.log(Progress(label=stage, done=0, total=0))
            return
        loss = measured.pop("loss", None)
        values = {} if loss is None else {"loss": loss}
        position: dict[str, Any] = {"step": 1, "steps": 1000, "samples": 0} | measured
        self.log(Metrics(training="sft", values=values, **position))

    def read(self, machine: MachineState) -> None:
        """One probe of this machine."""
        self.machine = machine
        self.step(10)

    def entries(self) -> list[dict[str, Any]]:
        return [strict_json(path) for path in sorted(self.folder.glob("progress_2*.json"))]

    def summary(self) -> dict[str, Any]:
        return strict_json(self.folder / SUMMARY)


def strict_json(path: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{path}: {name} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_rates_are_of_the_interval_and_not_of_the_whole(bench: Bench) -> None:
    for step in range(1, 19):
        bench.step(10, step=step, samples=2, tokens=300)
    for step in range(19, 22):
        bench.step(70, step=step, samples=7, tokens=1400)
    first, second = bench.entries()
    assert (first["samples_per_s"], first["tokens_per_s"]) == (
        pytest.approx(0.2),
        pytest.approx(30.0),
    )
    assert (second["samples_per_s"], second["tokens_per_s"]) == (
        pytest.approx(0.1),
        pytest.approx(20.0),
    )
    assert (second["interval_s"], second["elapsed_s"]) == (210.0, 390.0)
    assert (second["samples"], second["tokens"]) == (21, 4200)


def test_nothing_counted_is_null_and_not_zero(bench: Bench) -> None:
    bench.step(180)
    (entry,) = bench.entries()
    nothing = ("samples_per_s", "tokens_per_s", "step", "steps", "epoch", "loss", "eta_s")
    assert [entry[name] for name in nothing] == [None] * len(nothing)
    assert bench.summary()["samples_per_s"] is None


def test_a_new_training_begins_without_the_position_of_the_last(bench: Bench) -> None:
    bench.step(10, step=3, steps=3, loss=0.01)
    bench.log(TrainingBegun(training="reward", done=0, steps=5))
    bench.wait(180)  # what follows may take long before its first step
    bench.log(Progress(label="reading pairs", done=1, total=9))
    (entry,) = bench.entries()
    assert [entry[name] for name in ("step", "steps", "loss", "eta_s")] == [None] * 4
    bench.step(180, step=1, steps=5, loss=2.0)
    assert bench.summary()["best_loss"] == 2.0


def test_nothing_is_written_before_the_interval_is_over(bench: Bench) -> None:
    bench.step(179.9, samples=1)
    assert not bench.folder.exists()
    bench.step(0.1, samples=1)
    assert [path.name for path in sorted(bench.folder.iterdir())] == [
        "progress_20260301_120300.json",
        SUMMARY,
    ]


def test_an_entry_holds_the_position_the_machine_and_the_zone(bench: Bench) -> None:
    gpu = Gpu(
        index=0, use_percent=97.0, memory_used_bytes=5, memory_total_bytes=8, temperature_c=60.0
    )
    bench.machine = replace(CALM, gpus=(gpu,))
    bench.step(180, step=3, steps=9, epoch=0.5, loss=1.25, samples=1, tokens=1)
    (entry,) = bench.entries()
    assert entry["timestamp"] == "2026-03-01T12:03:00+09:00"
    assert [entry[name] for name in ("stage", "step", "steps", "epoch", "loss")] == [
        "training",
        3,
        9,
        0.5,
        1.25,
    ]
    assert [entry[name] for name in ("cpu_percent", "memory_percent", "process_rss_bytes")] == [
        20.0,
        40.0,
        1 << 30,
    ]
    assert entry["gpus"] == [
        {
            "index": 0,
            "use_percent": 97.0,
            "memory_used_bytes": 5,
            "memory_total_bytes": 8,
            "temperature_c": 60.0,
        }
    ]


def test_the_time_left_is_from_the_steps_timed_here(bench: Bench) -> None:
    bench.step(50, step=501, steps=600)  # resumed: how long the first 500 took is not known
    bench.step(20, step=502, steps=600)
    bench.step(0)  # without a step: pace and anchor stay
    bench.step(110, step=511, steps=600)
    assert bench.entries()[-1]["eta_s"] == pytest.approx(13 * 89)
    bench.step(180, step=600, steps=600)
    assert bench.entries()[-1]["eta_s"] == 0
    bench.step(90, step=1, steps=3)  # started over
    bench.step(90, step=2, steps=3)
    assert bench.entries()[-1]["eta_s"] == pytest.approx(90)
    bench.step(200, stage="another", step=1, steps=3)
    assert bench.entries()[-1]["eta_s"] is None


def test_a_clock_set_back_a_year_changes_no_measure_and_no_file(bench: Bench) -> None:
    bench.step(180, samples=18)
    bench.wall -= timedelta(days=365)
    bench.step(180, samples=36)
    assert [entry["samples_per_s"] for entry in bench.entries()] == [0.2, 0.1]
    assert bench.summary()["first_timestamp"] > bench.summary()["last_timestamp"]
    taken = {path: path.read_bytes() for path in bench.folder.glob("progress_2*.json")}
    for _ in range(2):
        bench.wall = NOON
        bench.step(180)
    assert all(path.read_bytes() == content for path, content in taken.items())
    assert [path.name for path in sorted(bench.folder.glob("progress_2*.json"))] == [
        "progress_20250301_120600.json",
        "progress_20260301_120300.json",
        "progress_20260301_120300_1.json",
        "progress_20260301_120300_2.json",
    ]
    assert bench.summary()["elapsed_s"] == 720


def gpus(*temperatures: float | None) -> MachineState:
    found = tuple(
        Gpu(index, 50.0, 1, 2, temperature) for index, temperature in enumerate(temperatures)
    )
    return replace(CALM, gpus=found)


@pytest.mark.parametrize(
    ("state_of", "limit", "margin", "text"),
    [
        (gpus, 75.0, 5.0, "GPU 0 temperature: 76 °C is above 75 °C; improve its cooling"),
        (
            lambda value: replace(CALM, memory_percent=value),
            95.0,
            3.0,
            "memory in use: 96 % is above 95 %",
        ),
        (
            lambda value: replace(CALM, cpu_percent=value),
            90.0,
            10.0,
            "CPU in use: 91 % is above 90 %",
        ),
    ],
)
def test_one_warning_a_crossing(
    bench: Bench,
    state_of: Callable[[float | None], MachineState],
    limit: float,
    margin: float,
    text: str,
) -> None:
    bench.read(state_of(limit))
    assert not bench.said
    for value in (limit + 1, limit + 3, limit, limit + 1, limit - margin + 0.5, None, limit + 1):
        bench.read(state_of(value))
    assert len(bench.said) == 1
    assert text in bench.said[0]
    bench.read(state_of(limit - margin))
    bench.read(state_of(limit + 1))
    assert len(bench.said) == 2


def test_each_gpu_is_watched_by_itself(bench: Bench) -> None:
    for state in (gpus(80, 60), gpus(80, 80), gpus(60, 80), gpus(80, 80), gpus(80, None)):
        bench.read(state)
    assert [line.split(":")[0] for line in bench.said] == [
        f"GPU {index} temperature" for index in (0, 1, 0)
    ]


def test_thresholds_can_be_set(tmp_path: Path) -> None:
    bench = Bench(tmp_path, cpu_percent=10.0)
    bench.read(CALM)
    assert bench.said == [
        "CPU in use: 20 % is above 10 %; 0 % are this run's; close other programs if steps have "
        "become slower"
    ]


def test_its_own_use_of_the_cpus_is_no_reason_to_warn(bench: Bench) -> None:
    busy = replace(CALM, cpu_percent=100.0)
    for own in (100.0, 90.0):
        bench.read(replace(busy, own_cpu_percent=own))
    assert not bench.said
    bench.read(replace(busy, own_cpu_percent=55.0))
    assert "100 % is above 90 %; 55 % are this run's; close other programs" in bench.said[0]


def test_the_machine_is_read_at_most_every_ten_seconds(bench: Bench) -> None:
    bench.machine = replace(CALM, memory_percent=99.0)
    for _ in range(99):
        bench.step(0.1)
    assert (bench.probes, bench.said) == (1, [])
    bench.step(0.2)
    assert (bench.probes, len(bench.said)) == (2, 1)


def test_the_summary_tells_the_whole(bench: Bench) -> None:
    bench.step(60, loss=3.0, samples=10, tokens=100)
    bench.machine = replace(CALM, memory_percent=99.0)
    bench.step(120, loss=1.0, samples=10, tokens=100)
    bench.step(220, loss=2.0, samples=20, tokens=600)
    summary, entries = bench.summary(), bench.entries()
    assert summary["entries"] == len(entries) == 2
    assert summary["latest"] == entries[-1]
    assert (summary["first_timestamp"], summary["last_timestamp"]) == tuple(
        entry["timestamp"] for entry in entries
    )
    assert (summary["best_loss"], summary["last_loss"]) == (1.0, 2.0)
    assert (summary["samples_per_s"], summary["tokens_per_s"]) == (
        pytest.approx(0.1),
        pytest.approx(2.0),
    )
    assert (summary["samples"], summary["tokens"], summary["elapsed_s"]) == (40, 800, 400.0)
    assert summary["warning_count"] == 1
    assert summary["warnings"] == [
        {"timestamp": "2026-03-01T12:03:00+09:00", "message": bench.said[0]}
    ]
    bench.step(180, stage="preferences", loss=9.0)
    assert (bench.summary()["best_loss"], bench.summary()["last_loss"]) == (9.0, 9.0)


def test_the_summary_keeps_counting_warnings_that_it_no_longer_lists(bench: Bench) -> None:
    for _ in range(WARNINGS_KEPT + 1):
        bench.read(replace(CALM, memory_percent=99.0))
        bench.read(CALM)
    bench.log.close()
    assert bench.summary()["warning_count"] == len(bench.said) == WARNINGS_KEPT + 1
    assert len(bench.summary()["warnings"]) == WARNINGS_KEPT


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_is_null(bench: Bench, loss: float) -> None:
    bench.step(1, loss=0.5)
    bench.machine = gpus(float("nan"))
    bench.step(180, loss=loss)
    (entry,) = bench.entries()
    assert (entry["loss"], entry["gpus"][0]["temperature_c"]) == (None, None)
    assert (bench.summary()["best_loss"], bench.summary()["last_loss"]) == (0.5, None)


def test_the_cpu_reading_at_the_start_covers_no_time_and_is_not_reported(bench: Bench) -> None:
    bench.step(9)
    bench.log.close()
    bench.step(1)
    bench.log.close()
    assert [entry["cpu_percent"] for entry in bench.entries()] == [None, 20.0]


def test_closing_writes_what_is_left_once(bench: Bench) -> None:
    bench.log.close()
    assert not bench.folder.exists()
    bench.step(30, samples=3)
    bench.log.close()
    bench.log.close()
    (entry,) = bench.entries()
    assert (entry["interval_s"], entry["samples_per_s"]) == (30.0, pytest.approx(0.1))
    bench.step(180)
    bench.log.close()
    assert bench.summary()["entries"] == 2


def test_closing_at_the_moment_of_the_entry_divides_by_nothing(bench: Bench) -> None:
    bench.step(180, samples=1)
    bench.step(0, samples=1)
    bench.log.close()
    assert [entry["samples_per_s"] for entry in bench.entries()] == [pytest.approx(1 / 180), None]


def test_a_full_disk_is_said_once_and_training_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.step(180, samples=1)
    before = bench.summary()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(3):
            bench.step(180, samples=1)
    assert bench.said == [
        f"{bench.folder}: the progress log cannot be written (the disk is full); training goes on"
    ]
    assert bench.summary() == before
    assert len(list(bench.folder.iterdir())) == 2
    bench.step(180, samples=1)
    assert (bench.summary()["entries"], bench.summary()["samples"]) == (2, 5)


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file is in the way")
    bench = Bench(tmp_path)
    bench.step(180)
    bench.step(180)
    bench.log.close()
    (said,) = bench.said
    assert "the progress log cannot be written" in said


@pytest.mark.parametrize(
    "nvml", [None, FakeNvml(nvmlInit=fail), FakeNvml(nvmlDeviceGetCount=fail, nvmlShutdown=fail)]
)
def test_without_a_gpu_the_list_is_empty(
    nvml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    said: list[str] = []
    log = ProgressLog(tmp_path, DurableSettings(interval_s=1e-9), say=said.append)
    log(Metrics(training="sft", step=1, steps=2, samples=1, values={}))
    entry = strict_json(tmp_path / FOLDER / SUMMARY)["latest"]
    assert entry["gpus"] == []
    assert entry["process_rss_bytes"] > 0
    assert 0 < entry["memory_percent"] <= 100
    assert datetime.fromisoformat(entry["timestamp"]).tzinfo is not None


def test_a_system_that_tells_nothing_is_no_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cpu_percent", "virtual_memory", "Process"):
        monkeypatch.setattr(psutil, name, lambda *_, **__: fail())
    monkeypatch.setitem(sys.modules, "pynvml", None)
    state = machine_state()
    assert state == MachineState(cpu_percent=None, memory_percent=None, process_rss_bytes=None)
    bench.machine = state
    bench.step(180)
    assert bench.entries()[0]["memory_percent"] is None
