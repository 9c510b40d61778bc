"""Start-up units: after a power cut and a boot, the run goes on without anybody there."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable

from aegis.errors import AegisError, BadInputError
from aegis.runs.autostart import launchd, systemd, task_scheduler
from aegis.runs.autostart.job import Account, Job, Unit, Words, this_account, this_job
from aegis.storage.files import make_folder, write_text

__all__ = [
    "Account",
    "Job",
    "Unit",
    "install",
    "native_system",
    "plan",
    "remove",
    "run_command",
    "shown",
    "this_account",
    "this_job",
]

Run = Callable[[Words], tuple[int, str]]
_PLANS = {"systemd": systemd.plan, "launchd": launchd.plan, "task-scheduler": task_scheduler.plan}
_NATIVE = {"linux": "systemd", "darwin": "launchd", "win32": "task-scheduler"}


def native_system(platform: str = sys.platform) -> str:
    """The start-up system of this kind of machine.

    Raises:
        BadInputError: if there is none that we know.
    """
    if platform not in _NATIVE:
        raise BadInputError(
            f"no start-up system is known for {platform}; see one with --system {'|'.join(_PLANS)}"
        )
    return _NATIVE[platform]


def plan(job: Job, account: Account, *, system: str) -> Unit:
    """What the system needs to start the job; nothing is written.

    Raises:
        BadInputError: if the system is unknown or cannot express a path.
    """
    if system not in _PLANS:
        raise BadInputError(f"--system must be one of {', '.join(_PLANS)}, got {system!r}")
    return _PLANS[system](job, account)


def run_command(words: Words) -> tuple[int, str]:
    """Run a command; return its exit status (127 if there is no such program) and what it said."""
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
    except FileNotFoundError:
        return 127, f"{words[0]} is not on this machine"
    except (OSError, subprocess.TimeoutExpired) as error:
        return 126, str(error)
    return done.returncode, " ".join((done.stderr or done.stdout).split())


def install(unit: Unit, *, run: Run, find: Callable[[str], str | None]) -> list[Words]:
    """The unit is written and enabled; return the commands run.

    Args:
        run: as `run_command`.
        find: as `shutil.which`.

    Raises:
        BadInputError: if the system's own program is not there; nothing was written.
        AegisError: if a command fails; the file stays.
    """
    program = unit.enable[0][0]
    if find(program) is None:
        raise BadInputError(
            f"{program} is not on this machine, so {unit.system} cannot start the run; "
            "see another system's text with `aegis autostart show CONFIG --system NAME`"
        )
    try:
        for folder in (unit.path.parent, *unit.folders):
            make_folder(folder)
        write_text(unit.path, unit.text)
    except OSError as error:
        raise AegisError(
            f"{unit.path}: cannot be written ({error.strerror}); correct the folder's permissions"
        ) from error
    commands = (*(_loaded(unit, run) if unit.load_once else ()), *unit.enable)
    _run_all(commands, run, f"{unit.path} is written, but not enabled")
    return list(commands)


def remove(unit: Unit, *, run: Run) -> list[Words] | None:
    """The unit is disabled and its file gone; return the commands run, None if it was not
    installed.

    A run that systemd or Task Scheduler has started goes on; launchd stops it, and it can be
    resumed.

    Raises:
        AegisError: if a command or the deletion fails; what is left is removed by the same call
            later.
    """
    loaded = _loaded(unit, run)
    if not loaded and not unit.path.exists():
        return None
    before = (*loaded, *unit.disable)
    after = (f"delete {unit.path}", *map(shown, unit.refresh))
    _run_all(before, run, f"{unit.path} is not deleted yet", after=after)
    try:
        unit.path.unlink(missing_ok=True)
    except OSError as error:
        raise AegisError(
            f"{unit.path}: cannot be deleted ({error.strerror}); delete it by hand"
        ) from error
    _run_all(unit.refresh, run, f"{unit.path} is deleted")
    return [*before, *unit.refresh]


def shown(words: Words) -> str:
    """The command as one would type it in this system's shell."""
    return subprocess.list2cmdline(words) if words[0] == "schtasks" else shlex.join(words)


def _loaded(unit: Unit, run: Run) -> tuple[Words, ...]:
    """The command that makes the system forget the unit, if it knows it."""
    if unit.probe is None or unit.unload is None or run(unit.probe)[0] != 0:
        return ()
    return (unit.unload,)


def _run_all(commands: Iterable[Words], run: Run, state: str, *, after: Iterable[str] = ()) -> None:
    left = list(commands)
    while left:
        status, said = run(left[0])
        if status:
            by_hand = " ; ".join([*map(shown, left), *after])
            raise AegisError(
                f"{state}: `{shown(left[0])}` failed with {status} ({said or 'it said nothing'}); "
                f"type by hand, in this order: {by_hand}"
            )
        left.pop(0)
