"""Identify a process so surely that a reused number or a reboot cannot deceive."""

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
    """Return the process that has this number now.

    Raises:
        psutil.NoSuchProcess: if none has.
    """
    return Process(pid, _start_time(pid), _boot_id())


def is_alive(process: Process) -> bool:
    """Check that exactly this process still runs; a zombie or a successor does not count."""
    if process.boot != _boot_id():
        return False
    try:
        same = abs(_start_time(process.pid) - process.started) < 1
        return same and psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _start_time(pid: int) -> float:
    """Count from the boot on Linux, where setting the clock changes nothing; else ask psutil."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return psutil.Process(pid).create_time()


def _boot_id() -> str:
    """Return what changes with every start of the machine: its id, or its start time in minutes."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time() // 60:.0f}"
