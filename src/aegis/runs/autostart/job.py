"""What is to be started, for whom, and the unit that says so to the start-up system."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aegis.errors import BadInputError

Command = tuple[str, ...]
STOP_TIMEOUT_S = 300  # leaves room for the emergency save


@dataclass(frozen=True)
class Job:
    """`python -m aegis run config`, given in `folder`; every path is absolute."""

    python: str
    config: str
    folder: str
    aegis_home: str | None = None

    @property
    def command(self) -> Command:
        return (self.python, "-m", "aegis", "run", self.config)

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.python, self.config, self.folder, self.aegis_home or "")

    @property
    def name(self) -> str:
        """Letters, digits and dashes; two configs never share a name."""
        digest = hashlib.sha256(os.path.normcase(self.config).encode()).hexdigest()
        stem = re.split(r"[\\/]", self.config)[-1].rsplit(".", 1)[0]
        slug = re.sub(r"[^A-Za-z0-9]+", "-", stem)[:40].strip("-")
        return f"aegis-{slug or 'run'}-{digest[:8]}"


@dataclass(frozen=True)
class Account:
    """The user, and the folders where each system looks for this user's units."""

    user: str
    uid: int
    systemd_units: Path
    launch_agents: Path
    tasks: Path
    logs: Path


@dataclass(frozen=True)
class Unit:
    """A start-up file and the commands around it.

    `probe` succeeds while the system knows the unit; `unload` is run only then, before deleting
    and, where `load_once`, before enabling. None: the file alone decides.
    `enable` comes after writing, `disable` before deleting, `refresh` after deleting.
    `start` starts it at once; None: enabling does.
    """

    system: str
    name: str
    path: Path
    text: str
    enable: tuple[Command, ...]
    disable: tuple[Command, ...]
    refresh: tuple[Command, ...] = ()
    probe: Command | None = None
    unload: Command | None = None
    load_once: bool = False
    start: Command | None = None
    folders: tuple[Path, ...] = ()


def this_job(config: Path, *, folder: Path, environment: Mapping[str, str]) -> Job:
    """Describe the job that this Python would run for the config from the folder.

    Links to files are kept: a virtual environment's python is one.

    Raises:
        BadInputError: if a path holds a character that no start-up file can.
    """
    home = environment.get("AEGIS_HOME")
    job = Job(
        python=os.path.abspath(sys.executable),
        config=str((folder / config).parent.resolve() / config.name),
        folder=str(folder),
        aegis_home=str(folder / Path(home).expanduser()) if home else None,
    )
    for path in job.paths:
        categories = map(unicodedata.category, path)
        if {"Cc", "Cs"} & set(categories) or {"\ufffe", "\uffff"} & set(path):
            raise BadInputError(
                f"{path!r}: a path in a start-up file must hold no line break, control character "
                "or invalid UTF-8; rename it"
            )
    return job


def this_account(environment: Mapping[str, str]) -> Account:
    """Return the account that the process belongs to."""
    home, user, domain = Path.home(), getpass.getuser(), environment.get("USERDOMAIN")
    settings = Path(environment.get("XDG_CONFIG_HOME", ""))
    return Account(
        user=f"{domain}\\{user}" if domain and os.name == "nt" else user,
        uid=getattr(os, "getuid", lambda: 0)(),
        systemd_units=(settings if settings.is_absolute() else home / ".config") / "systemd/user",
        launch_agents=home / "Library" / "LaunchAgents",
        tasks=platformdirs.user_data_path("aegis", appauthor=False) / "autostart",
        logs=platformdirs.user_log_path("aegis", appauthor=False),
    )


def render(template: str, *, escape_xml: bool, **values: Any) -> str:
    """Fill in the template beside this file; a missing value is our bug."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=escape_xml,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values)
