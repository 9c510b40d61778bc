"""Watch over a run: end what hangs, start again what died, with growing waits."""

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

from aegis.errors import EXIT_BAD_INPUT, EXIT_DONE, ArtifactError, BadInputError, DiskFullError
from aegis.runs.events import WatcherAction, append_event
from aegis.runs.health import SILENCE_S, RunStatus, is_locked, read_status
from aegis.runs.process import Process, is_alive
from aegis.runs.record import Session, load, newest

LOG = "resume.log"
_GRACE_S, _KILL_S, _START_S = 60.0, 15.0, 900.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 10.0, 600.0
_WINDOWS = os.name == "nt"
ASK: int = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM)
KILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)  # SIGTERM is TerminateProcess on Windows
_TRANSIENT = re.compile(
    r"out of memory|cannot allocate memory|disk is full|no space left|input/output error"
    r"|stale file handle|too many open files|temporarily unavailable|timed? ?out|connection|network"
    r"|name resolution|\b50[234] (?:server|bad|service|gateway)"
    r"|cuda error|cudnn|cublas|nccl|device unavailable|driver",
    re.IGNORECASE,
)


class Child(Protocol):
    """A started process, as subprocess.Popen is one."""

    pid: int

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...


def start_process(command: Sequence[str], folder: Path, log: Path) -> Child:
    """Run the command in the folder, apart from this terminal; append its output to the log."""
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


@dataclass(frozen=True)
class WatchSettings:
    """Seconds between looks, seconds of silence allowed, fruitless resumes in a row allowed."""

    interval_s: float = 60.0
    silence_s: float = SILENCE_S
    max_resumes: int = 5


def backoff_s(resumes: int) -> float:
    """Return the seconds to wait before the next resume: 10, 20, 40 … 600."""
    return min(_FIRST_WAIT_S * 2 ** min(resumes, 20), _LONGEST_WAIT_S)


def is_transient(error: str) -> bool:
    """Check whether the same command may succeed later: memory, disk, network, device."""
    return _TRANSIENT.search(error) is not None


def end_process(process: Process, system: System) -> bool:
    """Ask the process to stop, then kill it; return False if it lives on.

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
    """Return the command line that goes on with this very session, and the folder to run it in.

    Raises:
        ArtifactError: if there is none.
    """
    argv, folder = session.command.get("argv"), Path(session.command.get("cwd", ""))
    if not argv:
        raise ArtifactError(
            f"{session.folder}: the record holds no command; run the same aegis command again "
            "yourself"
        )
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder}: the folder that the run was started in is gone; put it back"
        )
    later = newest(session.folder.parent, config_fingerprint=session.config_fingerprint)
    if later and later.session_id != session.session_id:
        raise ArtifactError(f"{later.folder}: a newer session of the same settings; watch that one")
    words = [word for word in argv if word != "--no-auto-resume"]  # it would begin anew
    return [sys.executable, "-m", "aegis", *words], folder


@contextlib.contextmanager
def only_watcher(folder: Path) -> Iterator[None]:
    """Keep other watchers from resuming this session meanwhile.

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
class Supervisor:
    """Keeps one session going.

    Args:
        say: gets one line for each thing done, and why.
        resumes: since the last one that got anywhere.
        given_up: why nothing more is done; empty until then.
    """

    folder: Path
    say: Callable[[str], None]
    settings: WatchSettings = WatchSettings()
    system: System = field(default_factory=System)
    resumes: int = 0
    given_up: str = ""
    _progress: tuple[int, int] = (0, 0)
    _child: Child | None = None
    _process_before: Process | None = None
    _started: float = 0.0
    _last_reason: str = ""

    def handle(self, status: RunStatus) -> bool:
        """Do what can be done for the run; return False if it is over, or nothing helps."""
        if status.state == "finished":
            return False
        session = load(self.folder)
        code = self._child.poll() if self._child else None
        not_taken_over = self._child is not None and session.process == self._process_before
        if self._child and not_taken_over and code is None:
            if self.system.clock() - self._started > _START_S:
                self._record(
                    f"process {self._child.pid} has not taken the session over "
                    f"for {_START_S:.0f} s; killing it"
                )
                self._child.kill()
            return True
        if status.state == "running":
            self._child = self._child if code is None else None
            return True
        if code == EXIT_BAD_INPUT:
            log = self.folder / LOG
            return self._give_up(f"the resumed run ended with exit code 2, bad input; see {log}")
        if not_taken_over and code == EXIT_DONE:
            return self._give_up(
                f"the resumed run worked on another session: its settings have changed; see {LOG}"
            )
        if status.state == "failed" and not is_transient(status.evidence):
            return self._give_up("it failed of something that another try would not mend")
        if status.state == "hung":
            return self._end_and_resume(session, status)
        if status.state == "stopped" and not status.rebooted and not not_taken_over:
            return self._leave_alone(
                "stopped by the user, so left alone; run the same command again to go on"
            )
        if status.alive:
            return self._leave_alone("its process is still there; waiting for it to end")
        return self._resume(status.evidence)

    def _end_and_resume(self, session: Session, status: RunStatus) -> bool:
        if status.watched_s <= self.settings.silence_s:
            return self._leave_alone(
                "silent by the clock alone; "
                "it is ended only after as long a silence by this watcher's own"
            )
        if session.process is None or not session.alive:
            return self._leave_alone(
                "it cannot be told for certain which process hangs, so none is ended; "
                "end it yourself"
            )
        pid = session.process.pid
        self._record(f"asking process {pid} to stop: {status.evidence}")
        if not end_process(session.process, self.system):
            return self._give_up(f"process {pid} cannot be ended; end it yourself")
        self._record(f"process {pid} has ended")
        return self._resume("it hung")

    def _resume(self, why: str) -> bool:
        """Start it again after a wait, unless it goes on by itself meanwhile."""
        session, limit = load(self.folder), self.settings.max_resumes
        progress = _progress(session)
        if any(now > then for now, then in zip(progress, self._progress, strict=True)):
            self.resumes = 0
        if self.resumes >= limit:
            return self._give_up(
                f"{self.resumes} resumes in a row got nowhere; see {self.folder / LOG}"
            )
        try:
            command, folder = resume_command(session)
        except ArtifactError as error:
            return self._give_up(str(error))
        wait_s, attempt = backoff_s(self.resumes), self.resumes + 1
        self._record(f"resuming in {wait_s:.0f} s (attempt {attempt} of {limit}): {why}")
        self.system.sleep(wait_s)
        session = load(self.folder)
        if session.finished or session.alive or is_locked(self.folder):
            return self._leave_alone("it goes on by itself; not resumed")
        self._process_before, self._progress, self.resumes = session.process, progress, attempt
        try:
            self._child = self.system.start(command, folder, self.folder / LOG)
        except OSError as error:
            return self._give_up(f"the command cannot be started ({error}); run it yourself")
        self._started, self._last_reason = self.system.clock(), ""
        text = f"resumed as process {self._child.pid}; it prints to {self.folder / LOG}"
        self._record(text, resumed=True)
        return True

    def _leave_alone(self, why: str) -> bool:
        if why != self._last_reason:
            self._record(why)
        self._last_reason = why
        return True

    def _give_up(self, why: str) -> bool:
        self.given_up = why
        self._record(f"giving up: {why}")
        return False

    def _record(self, message: str, *, resumed: bool = False) -> None:
        """Say it, and add it to the session's events."""
        self.say(message)
        append_event(self.folder, WatcherAction(text=message, resumed=resumed))


def _progress(session: Session) -> tuple[int, int]:
    """Return two numbers that grow with every snapshot and every completed stage."""
    snapshots = session.rows("snapshots", last=1)
    completed = sum(record.state == "completed" for record in session.stages)
    return (snapshots[0]["id"] if snapshots else 0, completed)


def watch_over(
    run: Path,
    settings: WatchSettings,
    *,
    say: Callable[[str], None],
    alarm: Callable[[RunStatus], None],
    supervisor: Supervisor | None = None,
    system: System = System(),
) -> RunStatus:
    """Return the last status of a run, which is finished or failed, or which was given up.

    Args:
        alarm: gets the last status, and without a supervisor also each one that is the first to
            find the run stopped, dead, hung or silent.
        supervisor: resumes it; None only watches.
    """
    status, trouble, over = None, "", False
    while not over:
        try:
            previous = status
            status = read_status(
                run,
                silence_s=settings.silence_s,
                wall=system.wall,
                clock=system.clock,
                previous=previous,
            )
            if previous is None or status.state != previous.state:
                say(f"{status.state}: {status.evidence}")
                if supervisor is None and status.exit_code and status.state != "failed":
                    alarm(status)
            ended = status.state in ("finished", "failed")
            over = ended if supervisor is None else not supervisor.handle(status)
            trouble = ""
        except (ArtifactError, DiskFullError, OSError, sqlite3.Error) as error:
            if status is None:
                raise
            if str(error) != trouble:
                say(f"cannot look now ({error}); trying again")
            trouble = str(error)
        if not over:
            system.sleep(settings.interval_s)
    assert status is not None
    if supervisor and supervisor.given_up:
        given_up = f"{status.evidence}; given up: {supervisor.given_up}"
        status = replace(status, evidence=given_up)
    alarm(status)
    return status
