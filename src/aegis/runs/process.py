"""Which process is meant, so surely that a reused number or a reboot cannot deceive."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Process:
    """A process by number, start (seconds, of whatever clock the system counts it in) and boot."""

    pid: int
    started: float
    boot: str


def this_process() -> Process:
    return identify(os.getpid())


def identify(pid: int) -> Process:
    """The process that has this number now.

    Raises:
        psutil.NoSuchProcess: if none has.
    """
    return Process(pid, _started(pid), _boot())


def is_alive(process: Process) -> bool:
    """True if exactly this process still runs; a zombie, or another one with its number, does not
    count."""
    if process.boot != _boot():
        return False
    try:
        same = abs(_started(process.pid) - process.started) < 1
        return same and psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _started(pid: int) -> float:
    """On Linux counted from the boot, so that setting the clock changes nothing; elsewhere what
    psutil knows."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return psutil.Process(pid).create_time()


def _boot() -> str:
    """Changes with every start of the machine. Where the system has no id, its start time, to the
    minute."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time() // 60:.0f}"
