"""aegis watch: whether a run goes on, and going on with it when it does not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aegis.cli.notify import NOTIFY_HELP, ring_bell, run_notify_command
from aegis.cli.options import DAY_S, INPUT, AsJson, number
from aegis.cli.show import print_note, print_result
from aegis.errors import ArtifactError, BadInputError

if TYPE_CHECKING:
    from aegis.runs.health import RunStatus
    from aegis.runs.supervisor import System

_RUN = "A session folder; or another trainer's log file, or the folder it writes into."
_CHECK_ONLY = "Look once, print one line, and leave."
_RESUME = "End the run if it hangs, and start it again if it hangs or died."
_INTERVAL = "Time between looks."
_SILENCE = "A living run that is silent for longer hangs; durable.silence_s (300) by default."
_RESUMES = "Give up after so many resumes that got nowhere."
_INTERVAL_OPTION = number(help=_INTERVAL, least=0.1, most=DAY_S, metavar="SECONDS")
_SILENCE_OPTION = number(help=_SILENCE, least=1, most=30 * DAY_S, metavar="SECONDS")


def watch(
    run: Annotated[Path, typer.Argument(help=_RUN, callback=INPUT)] = Path("runs/latest"),
    check_only: Annotated[bool, typer.Option("--check-only", help=_CHECK_ONLY)] = False,
    auto_resume: Annotated[bool, typer.Option("--auto-resume", help=_RESUME)] = False,
    interval: Annotated[float, _INTERVAL_OPTION] = 60.0,
    silence: Annotated[float | None, _SILENCE_OPTION] = None,
    max_resumes: Annotated[int, number(help=_RESUMES, least=0, most=1000)] = 5,
    notify: Annotated[str | None, typer.Option(metavar="CMD", help=NOTIFY_HELP)] = None,
    json: AsJson = False,
) -> None:
    """Tell whether a run is running, finished, failed, stopped, dead (gone without a word) or hung
    (alive and silent).

    Looks every --interval seconds until the run is finished or failed. With --auto-resume, a run
    that died or hangs is started again by the command it was started with, after 10, 20, 40 ...
    seconds; one that you stopped is left alone, as is one that failed of a mistake. Ctrl-C ends the
    watching, never the run.

    Exit codes: 0 finished or running, 75 stopped, dead or hung (the same command goes on), 1
    failed, 2 no such run.
    """
    from aegis.runs.supervisor import System

    status = wait_for_end(
        run,
        check_only=check_only,
        auto_resume=auto_resume,
        interval_s=interval,
        silence_s=silence,
        max_resumes=max_resumes,
        notify=notify,
        system=System(),
    )
    if status:
        print_result(json, status.to_json(), one_line(status))
        raise typer.Exit(status.exit_code)


def wait_for_end(
    run: Path,
    *,
    check_only: bool,
    auto_resume: bool,
    interval_s: float,
    silence_s: float | None,
    max_resumes: int,
    notify: str | None,
    system: System,
) -> RunStatus | None:
    """Return the run's last status; None if the user ended the watching.

    Raises:
        BadInputError: if there is no such run, or it cannot be resumed from here.
    """
    from aegis.runs.health import SILENCE_S, configured_silence_s, is_session, read_status
    from aegis.runs.record import load, locate
    from aegis.runs.supervisor import Supervisor, WatchSettings, only_watcher, watch_over

    run = locate(run).resolve()  # runs/latest may lead elsewhere tomorrow
    if auto_resume and check_only:
        raise BadInputError("--check-only looks and does nothing: leave --auto-resume out")
    try:
        if silence_s is None:
            silence_s = configured_silence_s(load(run)) if is_session(run) else SILENCE_S
        status = read_status(run, silence_s=silence_s, wall=system.wall, clock=system.clock)
    except ArtifactError as error:
        raise BadInputError(str(error)) from error
    if check_only:
        return status
    if auto_resume and not is_session(run):
        raise BadInputError(
            f"{run}: a foreign run can be watched and never resumed, as its command is unknown; "
            "leave --auto-resume out"
        )

    def say(message: str) -> None:
        now = datetime.fromtimestamp(system.wall(), UTC).isoformat(timespec="seconds")
        print_note(f"{now} {message}")

    settings = WatchSettings(interval_s, silence_s, max_resumes)
    supervisor = Supervisor(run, say, settings, system) if auto_resume else None
    with only_watcher(run) if supervisor else contextlib.nullcontext():
        try:
            alarm = partial(alert, notify=notify, say=say)
            return watch_over(
                run, settings, say=say, alarm=alarm, supervisor=supervisor, system=system
            )
        except KeyboardInterrupt:
            say("watching ended; the run is left as it is")
            return None


def one_line(status: RunStatus) -> str:
    parts = [f"{status.state}: {status.evidence}"]
    if status.doing and status.state not in ("finished", "failed"):
        parts.append(f"{status.doing} {status.done}/{status.total}")
    elif status.total and status.doing is None:
        parts.append(f"{status.done}/{status.total} steps")
    if (snapshot := status.last_snapshot) and status.state != "finished":
        parts.append(f"last snapshot at step {snapshot['step']}, {snapshot['saved']}")
    if status.resumes:
        parts.append(f"resumes: {status.resumes}")
    return f"{Path(status.run).name} {'; '.join(parts)}"


def alert(status: RunStatus, notify: str | None, say: Callable[[str], None]) -> None:
    """Ring the terminal's bell, and run the user's own command."""
    ring_bell()
    if notify:
        told = run_notify_command(notify, status.run, status.state, one_line(status))
        say(f"--notify: {told}")
