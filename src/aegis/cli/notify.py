"""Tell a user who has gone away that a long verb has ended: the bell, and a command of theirs."""

from __future__ import annotations

import os
import signal
import sys
import time
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import Annotated

import typer

from aegis.cli.show import print_note
from aegis.errors import EXIT_DONE, EXIT_OVER_LIMIT, EXIT_RESUMABLE

_LIMIT_S = 60.0
_LONG_S = 20.0  # whoever waited longer than this may be looking elsewhere
_STATES = {EXIT_DONE: "finished", EXIT_OVER_LIMIT: "over limit", EXIT_RESUMABLE: "stopped"}
NOTIFY_HELP = "Shell command for the end; it finds AEGIS_RUN, AEGIS_STATE and AEGIS_MESSAGE."
_asked: list[str] = []


def _remember(command: str | None) -> None:
    _asked[:] = [command] if command else []


Notify = Annotated[
    str | None,
    typer.Option(metavar="CMD", help=NOTIFY_HELP, callback=_remember, expose_value=False),
]


def tell_end(words: list[str], code: int, message: str, *, begun: float) -> None:
    """Ring the bell if the verb took long, and run the command that was given with --notify.

    Args:
        begun: by the monotonic clock.
    """
    if time.monotonic() - begun > _LONG_S:
        ring_bell()
    for command in _asked:
        state = _STATES.get(code, "failed")
        run = " ".join(words)
        print_note(f"--notify: {run_notify_command(command, run, state, message or state)}")


def ring_bell() -> None:
    if sys.stdout.isatty():
        sys.stdout.write("\a")
        sys.stdout.flush()


def run_notify_command(
    command: str, run: str, state: str, message: str, *, limit_s: float = _LIMIT_S
) -> str:
    """Run the user's command with the end in its environment; return how that went."""
    env = os.environ | {"AEGIS_RUN": run, "AEGIS_STATE": state, "AEGIS_MESSAGE": message}
    posix = os.name != "nt"
    try:
        process = Popen(
            command, shell=True, env=env, stdin=DEVNULL, stdout=2, start_new_session=posix
        )
    except (OSError, ValueError) as error:
        return f"the command cannot be started ({error}); the run is not affected"
    try:
        code = process.wait(limit_s)
    except TimeoutExpired:
        if posix:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        return f"the command took longer than {limit_s:.0f} s and was ended"
    if code:
        return f"the command ended with exit code {code}; the run is not affected"
    return f"told of {state}"
