"""aegis autostart: a run that goes on by itself after a power cut."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from aegis.cli.options import ConfigFile, group
from aegis.cli.show import echo, print_document, print_json
from aegis.runs import autostart
from aegis.runs.autostart import Unit

app = group("Go on with a run by itself after a power cut.")
_SYSTEM = "systemd (linux), launchd (macos) or task-scheduler (windows); by default its own."
_JSON = "Print system, name, path, text and commands as JSON."
SystemName = Annotated[str | None, typer.Option("--system", metavar="NAME", help=_SYSTEM)]
AsJson = Annotated[bool, typer.Option("--json", help=_JSON)]


@app.command()
def show(config: ConfigFile, system: SystemName = None, json: AsJson = False) -> None:
    """Print the start-up file that install would write; nothing is touched."""
    unit = _unit(config, system)
    if json:
        _print_json(unit, unit.text, unit.enable)
    else:
        print_document(unit.text)


@app.command()
def install(config: ConfigFile, system: SystemName = None, json: AsJson = False) -> None:
    """Start `aegis run CONFIG` at boot or login, from this folder, until it is done.

    A run that was cut off goes on where it was; a finished one is left as it is. Doing it twice is
    fine.
    """
    unit = _unit(config, system)
    commands = autostart.install(unit, run=autostart.run_command, find=shutil.which)
    if json:
        _print_json(unit, unit.text, commands)
        return
    ran = [f"ran      {autostart.as_typed(command)}" for command in commands]
    start = "started  it runs now"
    if unit.start is not None:
        start = f"start it now with: {autostart.as_typed(unit.start)}"
    echo("\n".join([f"wrote    {unit.path}", *ran, start]))


@app.command()
def remove(config: ConfigFile, system: SystemName = None, json: AsJson = False) -> None:
    """Take the start-up file away again; the runs and their results stay."""
    unit = _unit(config, system, check_config=False)
    text = unit.path.read_text(encoding="utf-8") if unit.path.is_file() else ""
    commands = autostart.remove(unit, run=autostart.run_command)
    if json:
        _print_json(unit, text, commands or ())
    elif commands is None:
        echo(f"{unit.name} is not installed; nothing to remove")
    else:
        ran = [f"ran      {autostart.as_typed(command)}" for command in commands]
        echo("\n".join([*ran, f"removed  {unit.path}"]))


def _unit(config: Path, system: str | None, *, check_config: bool = True) -> Unit:
    from aegis.config import load_config

    if check_config:
        load_config(config)
    job = autostart.this_job(config, folder=Path.cwd(), environment=os.environ)
    account = autostart.this_account(os.environ)
    return autostart.plan(job, account, system=system or autostart.native_system())


def _print_json(unit: Unit, text: str, commands: Iterable[tuple[str, ...]]) -> None:
    record = {"system": unit.system, "name": unit.name, "path": str(unit.path), "text": text}
    print_json({**record, "commands": [autostart.as_typed(command) for command in commands]})
