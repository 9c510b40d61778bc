"""Whether a run is alive, finished, failed, stopped, dead or hung, from what it leaves behind;
looking changes nothing."""

from __future__ import annotations

import contextlib
import itertools
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
from aegis.runs.foreign_log import find_log, judge_log
from aegis.runs.heartbeat import Beat, read_beat
from aegis.runs.process import this_process
from aegis.runs.record import DATABASE, RECORD, Session, load, locate
from aegis.storage.lock import only_process

SILENCE_S = DurableSettings().silence_s
KIND, RESUMED = "watch", "resumed"
_EXIT_CODES = {"running": EXIT_DONE, "finished": EXIT_DONE, "failed": EXIT_FAILED}


@dataclass(frozen=True)
class Silence:
    """How long nothing has moved.

    Args:
        sign: differs whenever the run has moved on.
        since: the watcher's own monotonic time when it first saw this sign.
        before_s: the age of the sign at that moment by the wall clock, asked at the first look
            only.
    """

    sign: Hashable
    since: float
    before_s: float


@dataclass(frozen=True)
class Look:
    """A run at one moment.

    Args:
        state: running, finished, failed, stopped (by the user), dead (gone without saying so), hung
            (alive and silent), or silent (a foreign log that nobody writes to).
        silent_s: seconds since the last sign of life.
        watched_s: as `silent_s`, without what only the wall clock says.
        evidence: what the state follows from.
        resumes: how often watchers have started it again.
        rebooted: the machine was started anew since its process began.
        silence: to be given to the next look, in `last`.
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
    session: bool = True
    silence: Silence | None = field(default=None, repr=False)

    @property
    def exit_code(self) -> int:
        """0 finished or running, 1 failed, 75 where the same command goes on."""
        return _EXIT_CODES.get(self.state, EXIT_RESUMABLE)

    def to_json(self) -> dict[str, Any]:
        shown = (
            "run",
            "state",
            "stage",
            "doing",
            "done",
            "total",
            "pid",
            "alive",
            "silent_s",
            "last_snapshot",
        )
        return {name: getattr(self, name) for name in (*shown, "evidence", "resumes")}


def look(
    run: Path,
    *,
    silence_s: float = SILENCE_S,
    wall: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.monotonic,
    last: Look | None = None,
) -> Look:
    """How the run stands now.

    Args:
        run: a session's folder, a foreign log, or an output folder that holds one.
        silence_s: seconds without a sign of life that a living run is allowed.
        wall: seconds since the epoch; believed at the first look only.
        clock: the watcher's own monotonic seconds.
        last: the look before; None for the first.

    Raises:
        BadInputError: if there is nothing to look at.
    """
    path = locate(run)
    silence = last.silence if last else None
    if is_session(path):
        return _look_at_session(
            load(path), silence_s=silence_s, wall=wall(), now=clock(), last=silence
        )
    if not path.exists():
        raise BadInputError(
            f"{run}: no such run; give a session such as runs/latest, a log file, or the folder of one"
        )
    return _look_at_log(find_log(path), silence_s=silence_s, wall=wall(), now=clock(), last=silence)


def is_session(path: Path) -> bool:
    """True if the folder holds the record of an `aegis run`."""
    return any((path / name).is_file() for name in (DATABASE, RECORD))


def silence_of(session: Session) -> float:
    """`durable.silence_s` of the settings that the run was started with; the default where they
    cannot be read."""
    argv, folder = session.command.get("argv", []), Path(session.command.get("cwd", ""))
    configs = [folder / word for word in argv if word.endswith((".yaml", ".yml"))]
    overrides = [value for word, value in itertools.pairwise(argv) if word == "--set"]
    overrides += [word.removeprefix("--set=") for word in argv if word.startswith("--set=")]
    try:
        return load_config(configs[0], overrides).durable.silence_s if configs else SILENCE_S
    except ConfigError:
        return SILENCE_S


def is_held(folder: Path) -> bool:
    """True if a process holds the session. The lock knows better than a start time after the clock
    was changed."""
    if not (folder / ".lock").exists():
        return False
    try:
        with only_process(folder):
            return False
    except AegisError:
        return True
    except OSError:
        return False


def _follow(last: Silence | None, sign: Hashable, *, age_s: float, now: float) -> Silence:
    """The clock set back makes an age negative, which is fresh; set forth, it cannot deceive after
    the first look."""
    if last is None:
        return Silence(sign, now, max(0.0, age_s))
    return last if last.sign == sign else Silence(sign, now, 0.0)


def _look_at_session(
    session: Session, *, silence_s: float, wall: float, now: float, last: Silence | None
) -> Look:
    beat, process = read_beat(session.folder), session.process
    sign = (beat.count if beat else None, session.updated, process)
    silence = _follow(last, sign, age_s=wall - _last_sign(session, beat), now=now)
    watched = now - silence.since
    silent = silence.before_s + watched
    alive = session.alive or (not session.finished and is_held(session.folder))
    rebooted = process is not None and process.boot != this_process().boot
    state, evidence = _judge(
        session, alive=alive, rebooted=rebooted, silent_s=silent, silence_s=silence_s
    )
    current = (
        beat if beat and (process is None or beat.time >= process.started) else None
    )  # not of an earlier process
    snapshots = session.rows("snapshots", last=1)
    return Look(
        run=str(session.folder),
        state=state,
        evidence=evidence,
        stage=_stage(session),
        doing=current.doing if current else None,
        done=current.done if current else None,
        total=current.total if current else None,
        pid=process.pid if process else None,
        alive=alive,
        silent_s=round(silent, 1),
        last_snapshot={key: snapshots[0][key] for key in ("stage", "path", "step", "saved")}
        if snapshots
        else None,
        resumes=_resumes(session),
        watched_s=watched,
        rebooted=rebooted,
        silence=silence,
    )


def _judge(
    session: Session, *, alive: bool, rebooted: bool, silent_s: float, silence_s: float
) -> tuple[str, str]:
    """State and evidence of a session."""
    states, stage = {record.name: record.state for record in session.stages}, _stage(session)
    who = f"process {session.process.pid}" if session.process else "no process of its own"
    if session.finished:
        return "finished", "all stages are completed"
    if "running" not in states.values():
        if session.stage == "failed":
            return "failed", f"{stage} failed: {_error(session)}"
        if "stopped" in states.values():
            since = "; the machine was started anew since" if rebooted else " by the user"
            return "stopped", f"{stage} was stopped{since}"
    if alive and silent_s > silence_s:
        return (
            "hung",
            f"{who} is alive in {stage} and has given no sign of life for {silent_s:.0f} s",
        )
    if alive:
        return "running", f"{who} gave a sign of life in {stage} {silent_s:.0f} s ago"
    if rebooted:
        return "dead", f"the machine was started anew while {who} was in {stage}"
    return (
        "dead",
        f"{who} is gone without a word, in {stage}"
        if session.process
        else "no process is known to work on it",
    )


def _last_sign(session: Session, beat: Beat | None) -> float:
    """When anything last moved, by the wall clock of that moment: a beat, a saved record, or the
    process's start."""
    signs = [beat.time] if beat else []
    if session.process:
        signs.append(session.process.started)
    with contextlib.suppress(ValueError):
        signs.append(datetime.fromisoformat(session.updated).timestamp())
    return max(signs, default=0.0)


def _stage(session: Session) -> str:
    """The stage it is in, or the one that it failed or was stopped in."""
    for state in ("running", "failed", "stopped"):
        for record in session.stages:
            if record.state == state:
                return record.name
    return session.stage


def _error(session: Session) -> str:
    errors = [
        record.error for record in session.stages if record.state == "failed" and record.error
    ]
    return " ".join(errors[-1].split()) if errors else "nothing is recorded of why"


def _resumes(session: Session) -> int:
    events = session.rows("events", last=10_000)
    return sum(event["kind"] == KIND and event["message"].startswith(RESUMED) for event in events)


def _look_at_log(
    log: Path, *, silence_s: float, wall: float, now: float, last: Silence | None
) -> Look:
    status = log.stat()
    sign = (str(log), status.st_size, status.st_mtime_ns)
    silence = _follow(last, sign, age_s=wall - status.st_mtime, now=now)
    watched = now - silence.since
    silent = silence.before_s + watched
    finding = judge_log(log, silent_s=silent, silence_s=silence_s)
    return Look(
        run=str(log),
        state=finding.state,
        evidence=finding.evidence,
        done=finding.done,
        total=finding.total,
        silent_s=round(silent, 1),
        watched_s=watched,
        session=False,
        silence=silence,
    )
