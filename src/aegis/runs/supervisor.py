"""Watching over a run: what is dead or hung is ended for certain and started again, with growing
waits."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from aegis.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    AegisError,
    ArtifactError,
    BadInputError,
    DiskFullError,
)
from aegis.runs.health import KIND, RESUMED, SILENCE_S, Look, is_held, look
from aegis.runs.process import Process, is_alive
from aegis.runs.record import Session, load, newest

LOG = "resume.log"
_GRACE_S, _KILL_S, _START_S = 60.0, 15.0, 900.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 10.0, 600.0
_WINDOWS = os.name == "nt"
ASK: int = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM)
KILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)  # SIGTERM is TerminateProcess on Windows
_TRANSIENT = re.compile(
    r"out of memory|cannot allocate memory|disk is full|no space left|input/output error|stale file handle"
    r"|too many open files|temporarily unavailable|timed? ?out|connection|network|name resolution"
    r"|\b50[234] (?:server|bad|service|gateway)"
    r"|cuda error|cudnn|cublas|nccl|device unavailable|driver",
    re.IGNORECASE,
)


class Child(Protocol):
    """A started process, as subprocess.Popen is one."""

    pid: int

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...


def start_process(command: Sequence[str], folder: Path, log: Path) -> Child:
    """The command runs in the folder, apart from the watcher's terminal; what it prints is added to
    the log."""
    with log.open("ab") as out:
        return subprocess.Popen(
            list(command),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=not _WINDOWS,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )


@dataclass(frozen=True)
class System:
    """What a watcher asks of the machine."""

    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    send: Callable[[int, int], None] = os.kill
    start: Callable[[Sequence[str], Path, Path], Child] = start_process


def wait_s(count: int) -> float:
    """Seconds before the resume that follows `count` fruitless ones: 10, 20, 40 … 600."""
    return min(_FIRST_WAIT_S * 2 ** min(count, 20), _LONGEST_WAIT_S)


def is_transient(error: str) -> bool:
    """True if the same command may succeed later: memory, disk, network, device."""
    return _TRANSIENT.search(error) is not None


def end(process: Process, system: System) -> bool:
    """The process is asked to stop, then killed; False if it lives on.

    Right before each signal it is made sure that the number still means this process.
    """
    for number, grace_s in ((ASK, _GRACE_S), (KILL, _KILL_S)):
        if not is_alive(process):
            return True
        try:
            system.send(process.pid, number)
        except ProcessLookupError:
            return True
        except OSError:  # another user's, or on another console
            continue
        until = system.clock() + grace_s
        while is_alive(process) and system.clock() < until:
            system.sleep(0.5)
    return not is_alive(process)


def resume_command(session: Session) -> tuple[list[str], Path]:
    """The command line that goes on with this very session, and the folder to run it in.

    Raises:
        ArtifactError: if there is none.
    """
    argv, folder = session.command.get("argv"), Path(session.command.get("cwd", ""))
    if not argv:
        raise ArtifactError(
            f"{session.folder}: the record holds no command; run the same aegis command again yourself"
        )
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder}: the folder that the run was started in is gone; put it back"
        )
    later = newest(session.folder.parent, config_fingerprint=session.config_fingerprint)
    if later and later.session_id != session.session_id:
        raise ArtifactError(f"{later.folder}: a newer session of the same settings; watch that one")
    wanted = [word for word in argv if word != "--no-auto-resume"]  # it would begin anew
    return [sys.executable, "-m", "aegis", *wanted], folder


@contextlib.contextmanager
def only_watcher(folder: Path) -> Iterator[None]:
    """No other watcher resumes this session meanwhile.

    Raises:
        BadInputError: if one does already.
    """
    try:
        with FileLock(folder / ".watch.lock").acquire(timeout=0):
            yield
    except Timeout as error:
        raise BadInputError(
            f"{folder}: another aegis watch --auto-resume is at work; leave it to that one"
        ) from error


@dataclass
class Keeper:
    """Keeps one session going.

    Args:
        say: gets one line for each thing done, and why.
        count: resumes since the last one that got anywhere.
        given_up: why nothing more is done; empty until then.
    """

    folder: Path
    say: Callable[[str], None]
    max_resumes: int = 5
    silence_s: float = SILENCE_S
    system: System = field(default_factory=System)
    count: int = 0
    given_up: str = ""
    _mark: tuple[int, int] = (0, 0)
    _child: Child | None = None
    _before: Process | None = None
    _started: float = 0.0
    _told: str = ""

    def tend(self, found: Look) -> bool:
        """What can be done for the run is done; False if it is over, or nothing helps."""
        if found.state == "finished":
            return False
        session = load(self.folder)
        code = self._child.poll() if self._child else None
        untouched = self._child is not None and session.process == self._before
        if untouched and code is None:
            self._mind_the_start()
            return True
        if found.state == "running":
            self._child = self._child if code is None else None
            return True
        if code == EXIT_BAD_INPUT:
            return self._give_up(
                f"the resumed run ended with exit code 2, bad input; see {self.folder / LOG}"
            )
        if untouched and code == EXIT_DONE:
            return self._give_up(
                f"the resumed run worked on another session: its settings have changed; see {LOG}"
            )
        if found.state == "failed" and not is_transient(found.evidence):
            return self._give_up("it failed of something that another try would not mend")
        if found.state == "hung":
            return self._end_and_resume(session, found)
        if found.state == "stopped" and not found.rebooted and not untouched:
            return self._leave(
                "stopped by the user, so left alone; run the same command again to go on"
            )
        if found.alive:
            return self._leave("its process is still there; waiting for it to end")
        return self._resume(found.evidence)

    def _end_and_resume(self, session: Session, found: Look) -> bool:
        if found.watched_s <= self.silence_s:
            return self._leave(
                "silent by the clock alone; it is ended only after as long a silence by this watcher's own"
            )
        if session.process is None or not session.alive:
            return self._leave(
                "it cannot be told for certain which process hangs, so none is ended; end it yourself"
            )
        self._note(f"asking process {session.process.pid} to stop: {found.evidence}")
        if not end(session.process, self.system):
            return self._give_up(f"process {session.process.pid} cannot be ended; end it yourself")
        self._note(f"process {session.process.pid} has ended")
        return self._resume("it hung")

    def _resume(self, why: str) -> bool:
        """Start it again after a wait, unless it goes on by itself meanwhile."""
        session = load(self.folder)
        mark = _progress(session)
        if self.count and any(now > then for now, then in zip(mark, self._mark, strict=True)):
            self.count = 0
        if self.count >= self.max_resumes:
            return self._give_up(
                f"{self.count} resumes in a row got nowhere; see {self.folder / LOG}"
            )
        try:
            command, folder = resume_command(session)
        except ArtifactError as error:
            return self._give_up(str(error))
        wait, number = wait_s(self.count), self.count + 1
        self._note(f"resuming in {wait:.0f} s (attempt {number} of {self.max_resumes}): {why}")
        self.system.sleep(wait)
        session = load(self.folder)
        if session.finished or session.alive or is_held(self.folder):
            return self._leave("it goes on by itself; not resumed")
        self._before, self._mark, self.count = session.process, mark, number
        try:
            self._child = self.system.start(command, folder, self.folder / LOG)
        except OSError as error:
            return self._give_up(f"the command cannot be started ({error}); run it yourself")
        self._started, self._told = self.system.clock(), ""
        self._note(f"{RESUMED} as process {self._child.pid}; it prints to {self.folder / LOG}")
        return True

    def _mind_the_start(self) -> None:
        """A started process that never takes its session over is ended."""
        if self._child and self.system.clock() - self._started > _START_S:
            self._note(
                f"process {self._child.pid} has not taken the session over for {_START_S:.0f} s; killing it"
            )
            self._child.kill()

    def _leave(self, why: str) -> bool:
        if why != self._told:
            self._note(why)
        self._told = why
        return True

    def _give_up(self, why: str) -> bool:
        self.given_up = why
        self._note(f"giving up: {why}")
        return False

    def _note(self, message: str) -> None:
        """Told, and recorded in the session where that can be."""
        self.say(message)
        with contextlib.suppress(sqlite3.Error, OSError, AegisError):
            load(self.folder).event(KIND, message)


def _progress(session: Session) -> tuple[int, int]:
    """Grows with every snapshot and every completed stage."""
    snapshots = session.rows("snapshots", last=1)
    return (
        snapshots[0]["id"] if snapshots else 0,
        sum(record.state == "completed" for record in session.stages),
    )


def watch_over(
    run: Path,
    *,
    interval_s: float,
    silence_s: float,
    say: Callable[[str], None],
    alarm: Callable[[Look], None],
    keeper: Keeper | None = None,
    system: System | None = None,
) -> Look:
    """The last look at a run, which is finished or failed, or which its keeper gave up.

    Args:
        interval_s: seconds between looks.
        alarm: gets the last look, and without a keeper also each look that finds the run stopped,
            dead, hung or silent anew.
        keeper: resumes it; None only looks.
    """
    system, last, trouble = system or System(), None, ""
    while True:
        try:
            found = look(run, silence_s=silence_s, wall=system.wall, clock=system.clock, last=last)
            if last is None or found.state != last.state:
                say(f"{found.state}: {found.evidence}")
                if keeper is None and found.exit_code and found.state != "failed":
                    alarm(found)
            last, over = (
                found,
                found.state in ("finished", "failed") if keeper is None else not keeper.tend(found),
            )
            if over:
                if keeper and keeper.given_up:
                    found = replace(
                        found, evidence=f"{found.evidence}; given up: {keeper.given_up}"
                    )
                alarm(found)
                return found
            trouble = ""
        except (ArtifactError, DiskFullError, OSError, sqlite3.Error) as error:
            if last is None:
                raise
            if str(error) != trouble:
                say(f"cannot look now ({error}); trying again")
            trouble = str(error)
        system.sleep(interval_s)
