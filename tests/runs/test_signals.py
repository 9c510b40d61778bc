from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aegis.errors import EXIT_RESUMABLE, StoppedError
from aegis.runs.signals import Interrupt

WORKER = """
import time
from aegis.runs.signals import Interrupt
with Interrupt() as interrupt:
    print("working", flush=True)
    while True:
        time.sleep(0.05)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_asks(name: str) -> None:
    number = getattr(signal, name)
    inherited = signal.signal(
        number, signal.SIG_DFL
    )  # a shell lets what it starts with & ignore SIGINT
    try:
        with Interrupt() as interrupt:
            interrupt.check()
            signal.raise_signal(number)  # to this thread, at once
            with pytest.raises(StoppedError, match=f"stopped by {name}"):
                interrupt.check()
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, inherited)


def test_what_is_ignored_stays_ignored() -> None:
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("no SIGHUP on this system")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signal.raise_signal(signal.SIGHUP)
            interrupt.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "working\n"
    worker.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)
    _, told = worker.communicate(timeout=10)
    assert worker.returncode == EXIT_RESUMABLE
    assert "stopping at the end of this step" in told
    assert "the last snapshot is sound" in told
