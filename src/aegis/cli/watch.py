"""aegis watch: whether a run goes on, and going on with it when it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aegis.runs.health import Look
    from aegis.runs.supervisor import System

_NOTIFY_LIMIT_S = 60.0


def watch(
    run: Annotated[
        Path,
        typer.Argument(
            help="A session folder; or another trainer's log file, or the folder that it writes into."
        ),
    ] = Path("runs/latest"),
    check_only: Annotated[
        bool, typer.Option("--check-only", help="Look once, print one line, and leave.")
    ] = False,
    auto_resume: Annotated[
        bool,
        typer.Option(
            "--auto-resume", help="End the run if it hangs, and start it again if it hangs or died."
        ),
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Time between looks.")
    ] = 60.0,
    silence: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="A living run that is silent for longer hangs; durable.silence_s (300) by default.",
        ),
    ] = None,
    max_resumes: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Give up after so many resumes that got nowhere."),
    ] = 5,
    notify: Annotated[
        str | None,
        typer.Option(
            metavar="CMD",
            help="Shell command for the end; it finds AEGIS_RUN, AEGIS_STATE and AEGIS_MESSAGE.",
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print the last look as JSON, and what is done on stderr."),
    ] = False,
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

    found = watched(
        run,
        check_only=check_only,
        auto_resume=auto_resume,
        interval_s=interval,
        silence_s=silence,
        max_resumes=max_resumes,
        notify=notify,
        system=System(),
    )
    if found is None:
        return
    if json:
        from aegis.cli.show import print_json

        print_json(found.to_json())
    else:
        typer.echo(line(found))
    raise typer.Exit(found.exit_code)


def watched(
    run: Path,
    *,
    check_only: bool,
    auto_resume: bool,
    interval_s: float,
    silence_s: float | None,
    max_resumes: int,
    notify: str | None,
    system: System,
) -> Look | None:
    """The last look at the run; None if the user ended the watching.

    Raises:
        BadInputError: if there is no such run, or it cannot be resumed from here.
    """
    import contextlib

    from aegis.errors import ArtifactError, BadInputError
    from aegis.runs.health import SILENCE_S, is_session, look, silence_of
    from aegis.runs.record import load, locate
    from aegis.runs.supervisor import Keeper, only_watcher, watch_over

    run = locate(run).resolve()  # runs/latest may lead elsewhere tomorrow
    if auto_resume and check_only:
        raise BadInputError("--check-only looks and does nothing: leave --auto-resume out")
    try:
        silence_s = silence_s or (silence_of(load(run)) if is_session(run) else SILENCE_S)
        found = look(run, silence_s=silence_s, wall=system.wall, clock=system.clock)
    except ArtifactError as error:
        raise BadInputError(str(error)) from error
    if check_only:
        return found
    if auto_resume and not is_session(run):
        raise BadInputError(
            f"{run}: a foreign run can be watched and never resumed, as its command is unknown; leave --auto-resume out"
        )
    say = _say(system.wall)
    keeper = Keeper(run, say, max_resumes, silence_s, system) if auto_resume else None
    with only_watcher(run) if keeper else contextlib.nullcontext():
        try:
            return watch_over(
                run,
                interval_s=interval_s,
                silence_s=silence_s,
                say=say,
                alarm=lambda last: sound(last, notify, say),
                keeper=keeper,
                system=system,
            )
        except KeyboardInterrupt:
            say("watching ended; the run is left as it is")
            return None


def line(found: Look) -> str:
    """One look in one line."""
    parts = [f"{found.state}: {found.evidence}"]
    if found.doing and found.state not in ("finished", "failed"):
        parts.append(f"{found.doing} {found.done}/{found.total}")
    elif found.total and found.doing is None:
        parts.append(f"{found.done}/{found.total} steps")
    if found.last_snapshot and found.state != "finished":
        parts.append(
            f"last snapshot at step {found.last_snapshot['step']}, {found.last_snapshot['saved']}"
        )
    if found.resumes:
        parts.append(f"resumes: {found.resumes}")
    return f"{Path(found.run).name} {'; '.join(parts)}"


def sound(found: Look, notify: str | None, say: Callable[[str], None]) -> None:
    """The user hears of it: by the terminal's bell, and by their own command."""
    import sys

    if sys.stdout.isatty():
        sys.stdout.write("\a")
        sys.stdout.flush()
    if notify:
        problem = tell_command(notify, found)
        say(
            f"--notify: {problem}; the run is not affected"
            if problem
            else f"--notify: told of {found.state}"
        )


def tell_command(notify: str, found: Look, *, limit_s: float = _NOTIFY_LIMIT_S) -> str | None:
    """The user's command has run and knows the look by its environment; returns what went wrong."""
    import os
    import signal
    import subprocess

    environment = {
        **os.environ,
        "AEGIS_RUN": found.run,
        "AEGIS_STATE": found.state,
        "AEGIS_MESSAGE": line(found),
    }
    try:
        process = subprocess.Popen(
            notify,
            shell=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=os.name != "nt",
        )
    except (OSError, ValueError) as error:
        return f"the command cannot be started ({error})"
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"the command took longer than {limit_s:.0f} s and was ended"
    return f"the command ended with exit code {code}" if code else None


def _say(wall: Callable[[], float]) -> Callable[[str], None]:
    from datetime import datetime

    from aegis.cli.show import tell

    return lambda message: tell(
        f"{datetime.fromtimestamp(wall()).astimezone().isoformat(timespec='seconds')} {message}"
    )
