"""A launchd agent; keys as in launchd.plist(5)."""

from __future__ import annotations

import plistlib
from typing import Any

from aegis.runs.autostart.job import STOP_TIMEOUT_S, Account, Job, Unit

_BETWEEN_STARTS_S = 300  # from start to start, so a long run is taken up again at once


def plan(job: Job, account: Account) -> Unit:
    """Plan an agent that starts at login, and at once when it is loaded."""
    path, domain = account.launch_agents / f"{job.name}.plist", f"gui/{account.uid}"
    return Unit(
        system="launchd",
        name=job.name,
        path=path,
        text=_text(job, account),
        enable=(("launchctl", "bootstrap", domain, str(path)),),
        disable=(),
        probe=("launchctl", "print", f"{domain}/{job.name}"),
        unload=("launchctl", "bootout", f"{domain}/{job.name}"),
        load_once=True,
        folders=(account.logs,),
    )


def _text(job: Job, account: Account) -> str:
    log = str(account.logs / f"{job.name}.log")
    agent: dict[str, Any] = {
        "Label": job.name,
        "ProgramArguments": list(job.command),
        "WorkingDirectory": job.folder,
        "RunAtLoad": True,
        # launchd cannot tell exit codes apart: anything but 0 is tried again.
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": _BETWEEN_STARTS_S,
        "ExitTimeOut": STOP_TIMEOUT_S,
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    if job.aegis_home:
        agent["EnvironmentVariables"] = {"AEGIS_HOME": job.aegis_home}
    return plistlib.dumps(agent, sort_keys=False).decode("utf-8")
