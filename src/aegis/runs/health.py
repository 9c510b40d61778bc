"""Tell whether a run is alive, finished, failed, stopped, dead or hung; change nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from aegis.config import DurableSettings, load_config
from aegis.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RESUMABLE,
    AegisError,
    BadInputError,
    ConfigError,
)
from aegis.runs.events import WatcherAction, read_events
from aegis.runs.foreign_log import find_log, read_log
from aegis.runs.heartbeat import Beat, read_beat
from aegis.runs.process import this_process
from aegis.runs.record import CONFIG, DATABASE, RECORD, Session, load, locate
from aegis.storage.lock import only_process

SILENCE_S = DurableSettings().silence_s
_EXIT_CODES = {"running": EXIT_DONE, "finished": EXIT_DONE, "failed": EXIT_FAILED}
_Follow = Callable[[Hashable, float], tuple["Silence", float, float]]


@dataclass(frozen=True)
class Silence:
    """How long nothing has moved.

    Args:
        sign: differs whenever the run has moved on.
        since: the watcher's own monotonic time when it first saw this sign.
        before_s: the sign's age at that moment by the wall clock, which is asked only once.
    """

    sign: Hashable
    since: float
    before_s: float


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment.

    Args:
        state: running, finished, failed, stopped (by the user), dead (gone without saying so), hung
            (alive and silent), or silent (a foreign log that nobody writes to).
        evidence: what the state follows from.
        silent_s: seconds since the last sign of life.
        resumes: how often watchers have started it again.
        watched_s: as `silent_s`, without what only the wall clock says.
        rebooted: the machine was started anew since its process began.
    """

    run: str
    state: str
    evidence: str
    stage: str | None = None
    doing: str | None = None
    done: int | None = None
    total: int | None = None
    pid: int | None = None
    alive: bool | None = None
    silent_s: float | None = None
    last_snapshot: dict[str, Any] | None = None
    resumes: int = 0
    watched_s: float = 0.0
    rebooted: bool = False
    silence: Silence | None = field(default=None, repr=False)

    @property
    def exit_code(self) -> int:
        """0 finished or running, 1 failed, 75 where the same command goes on."""
        return _EXIT_CODES.get(self.state, EXIT_RESUMABLE)

    def to_json(self) -> dict[str, Any]:
        shown = "run state stage doing done total pid alive silent_s last_snapshot evidence resumes"
        return {name: getattr(self, name) for name in shown.split()}


def read_status(
    run: Path,
    *,
    silence_s: float = SILENCE_S,
    wall: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.monotonic,
    previous: RunStatus | None = None,
) -> RunStatus:
    """Find out how the run stands now.

    Args:
        run: a session's folder, a foreign log, or an output folder that holds one.
        silence_s: seconds without a sign of life that a living run is allowed.
        wall: seconds since the epoch; believed only where there is no previous status.
        clock: the watcher's own monotonic seconds.

    Raises:
        BadInputError: if there is no run.
    """
    path = locate(run)

    def follow(sign: Hashable, at: float) -> tuple[Silence, float, float]:
        """Return the silence, and its seconds with and without what the wall clock says."""
        silence, now = previous and previous.silence, clock()
        if silence is None:
            silence = Silence(sign, now, max(0.0, wall() - at))  # a clock set back: a fresh sign
        elif silence.sign != sign:
            silence = Silence(sign, now, 0.0)
        return silence, silence.before_s + now - silence.since, now - silence.since

    if is_session(path):
        return _session_status(load(path), silence_s, follow)
    if not path.exists():
        raise BadInputError(
            f"{run}: no such run; give a session such as runs/latest, a log file, "
            "or the folder of one"
        )
    return _log_status(find_log(path), silence_s, follow)


def is_session(path: Path) -> bool:
    """Check for the record of an `aegis run`."""
    return (path / DATABASE).is_file() or (path / RECORD).is_file()


def configured_silence_s(session: Session) -> float:
    """Return `durable.silence_s` of the run's settings; the default where they cannot be read."""
    try:
        return load_config(session.folder / CONFIG).durable.silence_s
    except ConfigError:
        return SILENCE_S


def is_locked(folder: Path) -> bool:
    """Check whether a process holds the session: right even after the clock was changed."""
    if not (folder / ".lock").exists():
        return False
    try:
        with only_process(folder):
            return False
    except AegisError:
        return True
    except OSError:
        return False


def _session_status(session: Session, silence_s: float, follow: _Follow) -> RunStatus:
    beat, process = read_beat(session.folder), session.process
    sign = (beat.count if beat else None, session.updated, process)
    silence, silent_s, watched_s = follow(sign, _last_sign(session, beat))
    alive = session.alive or (not session.finished and is_locked(session.folder))
    rebooted = process is not None and process.boot != this_process().boot
    hung = alive and silent_s > silence_s
    state, evidence = _session_state(session, alive, hung, rebooted, f"{silent_s:.0f} s")
    if beat and process and beat.time < process.started:
        beat = None  # of an earlier process
    snapshots = session.rows("snapshots", last=1)
    return RunStatus(
        run=str(session.folder),
        state=state,
        evidence="; ".join([evidence, *session.notes]),
        stage=_current_stage(session),
        doing=beat and beat.doing,
        done=beat and beat.done,
        total=beat and beat.total,
        pid=process and process.pid,
        alive=alive,
        silent_s=round(silent_s, 1),
        last_snapshot=(
            {key: snapshots[0][key] for key in ("stage", "path", "step", "saved")}
            if snapshots
            else None
        ),
        resumes=sum(action.resumed for action in read_events(session.folder, WatcherAction)),
        watched_s=watched_s,
        rebooted=rebooted,
        silence=silence,
    )


def _session_state(
    session: Session, alive: bool, hung: bool, rebooted: bool, silent: str
) -> tuple[str, str]:
    """Return the state and its evidence."""
    states, stage = {record.state for record in session.stages}, _current_stage(session)
    worker = f"process {session.process.pid}" if session.process else "no process of its own"
    if session.finished:
        return "finished", "all stages are completed"
    if "running" not in states and session.stage == "failed":
        return "failed", f"{stage} failed: {_recorded_error(session)}"
    if "running" not in states and "stopped" in states:
        why = "; the machine was started anew since" if rebooted else " by the user"
        return "stopped", f"{stage} was stopped{why}"
    if hung:
        return "hung", f"{worker} is alive in {stage} and has given no sign of life for {silent}"
    if alive:
        return "running", f"{worker} gave a sign of life in {stage} {silent} ago"
    if rebooted:
        return "dead", f"the machine was started anew while {worker} was in {stage}"
    if session.process:
        return "dead", f"{worker} is gone without a word, in {stage}"
    return "dead", "no process is known to work on it"


def _last_sign(session: Session, beat: Beat | None) -> float:
    """Return the wall clock's time of the newest beat, saved record or process start."""
    times = [beat.time] if beat else []
    if session.process:
        times.append(session.process.started)
    with contextlib.suppress(ValueError):
        times.append(datetime.fromisoformat(session.updated).timestamp())
    return max(times, default=0.0)


def _current_stage(session: Session) -> str:
    """Return the stage that runs, or the one that failed or was stopped."""
    for state in ("running", "failed", "stopped"):
        for record in session.stages:
            if record.state == state:
                return record.name
    return session.stage


def _recorded_error(session: Session) -> str:
    errors = [stage.error for stage in session.stages if stage.state == "failed" and stage.error]
    return " ".join(errors[-1].split()) if errors else "nothing is recorded of why"


def _log_status(log: Path, silence_s: float, follow: _Follow) -> RunStatus:
    stat = log.stat()
    sign = (str(log), stat.st_size, stat.st_mtime_ns)
    silence, silent_s, watched_s = follow(sign, stat.st_mtime)
    state = read_log(log, silent_s=silent_s, silence_s=silence_s)
    return RunStatus(
        run=str(log),
        state=state.name,
        evidence=state.evidence,
        done=state.done,
        total=state.total,
        silent_s=round(silent_s, 1),
        watched_s=watched_s,
        silence=silence,
    )
