"""Stop a run as Ctrl-C does, and go on with it by the command that it was started with."""

from __future__ import annotations

from pathlib import Path

from aegis.errors import BadInputError
from aegis.runs.health import is_locked
from aegis.runs.record import load
from aegis.runs.supervisor import ASK, LOG, System, resume_command


def stop_run(folder: Path, system: System) -> None:
    """Ask the run's process to stop; it ends at its step's end, with a snapshot.

    Raises:
        ArtifactError: if the record cannot be read.
        BadInputError: if no process of this machine's is at work on it.
    """
    session = load(folder)
    if not session.alive or session.process is None:
        raise BadInputError(f"{session.session_id} is not running, so there is nothing to stop")
    try:
        system.send(session.process.pid, ASK)
    except OSError as error:
        raise BadInputError(
            f"process {session.process.pid} cannot be reached ({error}); stop it where it runs"
        ) from error


def resume_run(folder: Path, system: System) -> None:
    """Start the run's command again; what it prints goes to `resume.log` in its folder.

    Raises:
        ArtifactError: if the record cannot be read, or holds no command that goes on with it.
        BadInputError: if it is finished, or a process is at work on it.
    """
    session = load(folder)
    if session.finished:
        raise BadInputError(f"{session.session_id} is finished, so there is nothing to go on with")
    if session.alive or is_locked(session.folder):
        raise BadInputError(f"{session.session_id} is running already")
    command, place = resume_command(session)
    system.start(command, place, session.folder / LOG)
