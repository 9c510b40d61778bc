"""A systemd user unit; quoting as in systemd.syntax(7), specifiers as in systemd.unit(5)."""

from __future__ import annotations

from aegis.errors import BadInputError
from aegis.runs.autostart.job import STOP_TIMEOUT_S, Account, Job, Unit, render

_RESTART_DELAY_S = 60


def plan(job: Job, account: Account) -> Unit:
    """Plan a unit that starts with the user's manager, which lingering starts at boot.

    Raises:
        BadInputError: if Python's own path is one that systemd refuses.
    """
    if any(character in job.python for character in "\"'\\"):
        raise BadInputError(
            f"{job.python}: systemd starts no program whose path holds a quote or a backslash; "
            "move the Python environment to another folder"
        )
    file = f"{job.name}.service"
    return Unit(
        system="systemd",
        name=job.name,
        path=account.systemd_units / file,
        text=_text(job),
        enable=(
            ("systemctl", "--user", "daemon-reload"),
            ("systemctl", "--user", "enable", file),
            ("loginctl", "enable-linger", account.user),
        ),
        disable=(("systemctl", "--user", "disable", file),),
        refresh=(("systemctl", "--user", "daemon-reload"),),
        start=("systemctl", "--user", "start", file),
    )


def _text(job: Job) -> str:
    # ":" switches $ substitution off (systemd 244); older ones refuse it, so only where needed.
    literal = ":" if any("$" in word for word in job.command) else ""
    program, *rest = job.command
    # WorkingDirectory= is taken as it stands, but white space and a backslash at its end are lost.
    ends_badly = job.folder != job.folder.rstrip(" \\")
    return render(
        "systemd.service.j2",
        escape_xml=False,
        config=_plain(job.config),
        folder=_plain(job.folder) + ("/" if ends_badly else ""),
        aegis_home=_quoted(f"AEGIS_HOME={job.aegis_home}") if job.aegis_home else None,
        command=" ".join([_quoted(literal + program), *(_quoted(word) for word in rest)]),
        restart_delay_s=_RESTART_DELAY_S,
        stop_timeout_s=STOP_TIMEOUT_S,
    )


def _plain(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_plain(escaped)}"'
