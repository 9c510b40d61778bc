"""Start-up units: after a power cut and a boot, the run goes on without anybody there."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable

from aegis.errors import AegisError, BadInputError
from aegis.runs.autostart import launchd, systemd, task_scheduler
from aegis.runs.autostart.job import Account, Command, Job, Unit, this_account, this_job
from aegis.storage.files import make_folder, write_text

__all__ = ["Account", "Job", "Unit", "this_account", "this_job"]

RunCommand = Callable[[Command], tuple[int, str]]
_PLANS = {"systemd": systemd.plan, "launchd": launchd.plan, "task-scheduler": task_scheduler.plan}
_NATIVE = {"linux": "systemd", "darwin": "launchd", "win32": "task-scheduler"}
_ALSO_CALLED = {**_NATIVE, "macos": "launchd", "mac": "launchd", "windows": "task-scheduler"}


def native_system(platform: str = sys.platform) -> str:
    """Return the start-up system of this kind of machine.

    Raises:
        BadInputError: if there is none that we know.
    """
    if platform not in _NATIVE:
        raise BadInputError(
            f"no start-up system is known for {platform}; see one with --system {'|'.join(_PLANS)}"
        )
    return _NATIVE[platform]


def plan(job: Job, account: Account, *, system: str) -> Unit:
    """Plan what the system needs to start the job; write nothing.

    Raises:
        BadInputError: if the system is unknown or cannot express a path.
    """
    system = _ALSO_CALLED.get(system.lower(), system)
    if system not in _PLANS:
        raise BadInputError(
            f"--system must be one of {', '.join(_PLANS)} or linux, macos, windows, got {system!r}"
        )
    return _PLANS[system](job, account)


def run_command(command: Command) -> tuple[int, str]:
    """Run a command; return its exit status (127: no such program) and what it printed."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
    except FileNotFoundError:
        return 127, f"{command[0]} is not on this machine"
    except (OSError, subprocess.TimeoutExpired) as error:
        return 126, str(error)
    return done.returncode, " ".join((done.stderr or done.stdout).split())


def install(unit: Unit, *, run: RunCommand, find: Callable[[str], str | None]) -> list[Command]:
    """Write and enable the unit; return the commands run.

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
    commands = [*(_unload_commands(unit, run) if unit.load_once else []), *unit.enable]
    _run_all(commands, run, f"{unit.path} is written, but not enabled")
    return commands


def remove(unit: Unit, *, run: RunCommand) -> list[Command] | None:
    """Disable the unit and delete its file; return the commands run, None if it is not installed.

    A run that systemd or Task Scheduler has started goes on; launchd stops it, and it can be
    resumed.

    Raises:
        AegisError: if a command or the deletion fails; the same call later removes the rest.
    """
    unload = _unload_commands(unit, run)
    if not unload and not unit.path.exists():
        return None
    before = [*unload, *unit.disable]
    after = [f"delete {unit.path}", *map(as_typed, unit.refresh)]
    _run_all(before, run, f"{unit.path} is not deleted yet", after=after)
    try:
        unit.path.unlink(missing_ok=True)
    except OSError as error:
        raise AegisError(
            f"{unit.path}: cannot be deleted ({error.strerror}); delete it by hand"
        ) from error
    _run_all(unit.refresh, run, f"{unit.path} is deleted")
    return [*before, *unit.refresh]


def as_typed(command: Command) -> str:
    """Return the command as one would type it in this system's shell."""
    is_windows = command[0] == "schtasks"
    return subprocess.list2cmdline(command) if is_windows else shlex.join(command)


def _unload_commands(unit: Unit, run: RunCommand) -> list[Command]:
    """Return what makes the system forget the unit, if it knows it."""
    known = unit.probe and unit.unload and run(unit.probe)[0] == 0
    return [unit.unload] if known and unit.unload else []


def _run_all(
    commands: Iterable[Command], run: RunCommand, state: str, *, after: Iterable[str] = ()
) -> None:
    commands = list(commands)
    for index, command in enumerate(commands):
        status, printed = run(command)
        if status:
            by_hand = " ; ".join([*map(as_typed, commands[index:]), *after])
            raise AegisError(
                f"{state}: `{as_typed(command)}` failed with {status} "
                f"({printed or 'it said nothing'}); type by hand, in this order: {by_hand}"
            )
