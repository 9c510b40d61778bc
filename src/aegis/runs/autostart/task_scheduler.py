"""A Windows Task Scheduler 1.2 task; elements as in [MS-TSCH] 2.5."""

from __future__ import annotations

import re
import subprocess

from aegis.errors import BadInputError
from aegis.runs.autostart.job import Account, Command, Job, Unit, render

# A task has no environment of its own, and cmd.exe would read %, ^ and & in paths.
_WITH_HOME = (
    "import os, runpy, sys; os.environ['AEGIS_HOME'] = sys.argv.pop(1); "
    "runpy.run_module('aegis', run_name='__main__', alter_sys=True)"
)


def plan(job: Job, account: Account) -> Unit:
    """Plan a task that starts when the user logs on.

    Raises:
        BadInputError: if a path holds %NAME%, which Task Scheduler would replace.
    """
    for path in job.paths:
        if re.search(r"%[^%\\/]+%", path):
            raise BadInputError(
                f"{path}: Task Scheduler reads %...% in a path as a variable; "
                "rename the folder or file"
            )
    path = account.tasks / f"{job.name}.xml"
    return Unit(
        system="task-scheduler",
        name=job.name,
        path=path,
        text=_text(job, account),
        enable=(("schtasks", "/Create", "/TN", job.name, "/XML", str(path), "/F"),),
        disable=(),
        probe=("schtasks", "/Query", "/TN", job.name),
        unload=("schtasks", "/Delete", "/TN", job.name, "/F"),
        start=("schtasks", "/Run", "/TN", job.name),
    )


def _text(job: Job, account: Account) -> str:
    program, *rest = _command(job)
    text = render(
        "task-scheduler.xml.j2",
        escape_xml=True,
        name=job.name,
        config=job.config,
        user=account.user,
        program=program,
        arguments=subprocess.list2cmdline(rest),
        folder=job.folder,
    )
    # References instead of letters beyond ASCII: valid UTF-8 that a wrong code page cannot spoil.
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _command(job: Job) -> Command:
    if not job.aegis_home:
        return job.command
    return (job.python, "-c", _WITH_HOME, job.aegis_home, "run", job.config)
