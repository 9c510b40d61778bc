from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from aegis.runs.health import RunStatus, read_status
from aegis.runs.heartbeat import HEARTBEAT, Beat
from aegis.runs.process import Process, identify, this_process
from aegis.runs.record import Session, open_session

STAGES = ("collect", "clean", "train", "fold")


class Time:
    """A machine whose clocks are turned by hand; sleeping turns them too."""

    def __init__(self) -> None:
        self.monotonic, self.wall, self.slept = 100.0, time.time(), []
        self.sent: list[tuple[int, int]] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.turn(seconds)

    def turn(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds

    def status(
        self, path: Path, previous: RunStatus | None = None, *, silence_s: float = 300
    ) -> RunStatus:
        return read_status(
            path,
            silence_s=silence_s,
            wall=lambda: self.wall,
            clock=lambda: self.monotonic,
            previous=previous,
        )

    def send(self, pid: int, number: int) -> None:
        self.sent.append((pid, number))


@pytest.fixture
def hands() -> Time:
    return Time()


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return open_session(tmp_path / "runs", config_fingerprint="a", resume=True, stages=STAGES)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def identity(process: subprocess.Popen[bytes]) -> Process:
    return identify(process.pid)


def gone() -> Process:
    return Process(
        os.getpid(), this_process().started - 1000, this_process().boot
    )  # our number, another process


def other_boot() -> Process:
    return replace(this_process(), boot="another")


def set_state(
    session: Session, state: str, *, process: Process | None = None, error: str | None = None
) -> Session:
    record = session.stage_record(STAGES[2])
    record.state, record.error = state, error
    session.stage = "failed" if state == "failed" else STAGES[2]
    session.process = process
    session.save()
    return session


def write_beat(session: Session, *, count: int, at: float) -> None:
    beat = Beat(count, at, STAGES[2], "training", 12, 40, 30.0, "")
    (session.folder / HEARTBEAT).write_text(json.dumps(asdict(beat)))
