from __future__ import annotations

import dataclasses
import json
import os
import plistlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from aegis.errors import AegisError, BadInputError
from aegis.runs import autostart
from aegis.runs.autostart import Account, Job, Unit
from aegis.runs.autostart.job import Command

SYSTEMS = ("systemd", "launchd", "task-scheduler")
AWKWARD = [
    "plain",
    "two  words ",
    "100%h %%",
    "a \"b\" 'c'",
    "back\\slash\\",
    "$HOME ${HOME} $$",
    "日本語 ; & <x> #",
    "-e",
]
NAMESPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


class Recorder:
    """A command runner that only remembers; commands that hold a failing word fail."""

    def __init__(self, *failing: str) -> None:
        self.failing, self.commands = failing, []

    def __call__(self, words: Command) -> tuple[int, str]:
        self.commands.append(words)
        return (1, "no bus") if any(word in self.failing for word in words) else (0, "")


@pytest.fixture
def account(tmp_path: Path) -> Account:
    folders = (tmp_path / "account" / name for name in ("units", "agents", "tasks", "logs"))
    return Account("me", 501, *folders)


def job(folder: Path | str, *, name: str = "quick.yaml", python: str = sys.executable) -> Job:
    return Job(
        python=python, config=f"{folder}/{name}", folder=str(folder), aegis_home=f"{folder}/home"
    )


def planned(system: str, account: Account, folder: Path | str = "/runs") -> Unit:
    return autostart.plan(job(folder), account, system=system)


def found(_program: str) -> str:
    return "/usr/bin/it"


def values(text: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", text, flags=re.MULTILINE)


def unquoted(line: str) -> list[str]:
    """Command as systemd.syntax(7) and systemd.unit(5) read them: quotes, backslashes, then
    specifiers."""
    words = re.findall(r'"((?:[^"\\]|\\.)*)"(?:\s|$)', line)
    assert not re.search(r"%[^%]", line.replace("%%", ""))
    return [re.sub(r"\\(.)", r"\1", word).replace("%%", "%") for word in words]


@pytest.mark.parametrize("part", AWKWARD)
def test_systemd_reads_back_what_was_meant(part: str, account: Account) -> None:
    meant = job(f"/runs/{part}", name=f"{part}.yaml", python="/a b/日本%/python")
    text = autostart.plan(meant, account, system="systemd").text
    [command], [folder], [environment] = (
        values(text, key) for key in ("ExecStart", "WorkingDirectory", "Environment")
    )
    words = unquoted(command)
    assert words[0].startswith(":") == ("$" in part)
    assert [words[0].removeprefix(":"), *words[1:]] == list(meant.command)
    assert folder.replace("%%", "%").removesuffix("/") == meant.folder
    assert not folder.endswith((" ", "\\"))
    assert unquoted(environment) == [f"AEGIS_HOME={meant.aegis_home}"]


def test_systemd_restarts_only_what_can_go_on(account: Account) -> None:
    unit = planned("systemd", account)
    wanted = {
        "Restart": "on-failure",
        "RestartForceExitStatus": "75",
        "RestartPreventExitStatus": "1 2",
        "KillSignal": "SIGTERM",
        "KillMode": "mixed",
        "WantedBy": "default.target",
    }
    assert {key: values(unit.text, key) for key in wanted} == {
        key: [value] for key, value in wanted.items()
    }
    assert int(values(unit.text, "TimeoutStopSec")[0]) >= 120
    assert unit.path == account.systemd_units / f"{unit.name}.service"
    assert not values(
        autostart.plan(Job("/p", "/c", "/"), account, system="systemd").text, "Environment"
    )


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)
@pytest.mark.parametrize("part", AWKWARD)
def test_systemd_accepts_the_unit(part: str, account: Account, tmp_path: Path) -> None:
    folder = tmp_path / part
    folder.mkdir()
    python = Path(sys.executable)
    if not set(part) & set("\"'\\"):
        python = folder / "python"
        python.symlink_to(sys.executable)
    unit = autostart.plan(
        job(folder, name=f"{part}.yaml", python=str(python)), account, system="systemd"
    )
    file = tmp_path / unit.path.name
    file.write_text(unit.text, encoding="utf-8")
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(file)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, unit.name in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize("part", AWKWARD)
def test_launchd_reads_back_what_was_meant(part: str, account: Account) -> None:
    meant = job(f"/Users/{part}", name=f"{part}.yaml")
    unit = autostart.plan(meant, account, system="launchd")
    agent = plistlib.loads(unit.text.encode())
    assert agent["Label"] == unit.name == unit.path.stem
    assert agent["ProgramArguments"] == list(meant.command)
    assert agent["WorkingDirectory"] == meant.folder
    assert agent["EnvironmentVariables"] == {"AEGIS_HOME": meant.aegis_home}
    assert agent["RunAtLoad"] is True
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["ThrottleInterval"] > 0
    assert (
        Path(agent["StandardOutPath"]).parent
        == Path(agent["StandardErrorPath"]).parent
        == account.logs
    )


@pytest.mark.parametrize("part", [part for part in AWKWARD if "%h %%" not in part])
@pytest.mark.parametrize("with_home", [False, True])
def test_task_scheduler_reads_back_what_was_meant(
    part: str, with_home: bool, account: Account
) -> None:
    meant = job(f"C:\\{part}", name=f"{part}.yaml")
    meant = meant if with_home else dataclasses.replace(meant, aegis_home=None)
    unit = autostart.plan(
        meant, dataclasses.replace(account, user="HOME\\太郎 & Co"), system="task-scheduler"
    )
    assert unit.text.startswith('<?xml version="1.0" encoding="UTF-8"?>')
    task = ET.fromstring(unit.text.encode("utf-8"))
    assert task.get("version") == "1.2"

    def text(path: str) -> str | None:
        return task.findtext("/".join(NAMESPACE + name for name in path.split("/")))

    assert text("Actions/Exec/Command") == meant.python
    assert text("Actions/Exec/WorkingDirectory") == meant.folder
    assert (text("Actions/Exec/Arguments") or "").endswith(
        subprocess.list2cmdline(["run", meant.config])
    )
    assert (
        text("Triggers/LogonTrigger/UserId")
        == text("Principals/Principal/UserId")
        == "HOME\\太郎 & Co"
    )
    settings = {
        "ExecutionTimeLimit": "PT0S",
        "DisallowStartIfOnBatteries": "false",
        "StopIfGoingOnBatteries": "false",
        "MultipleInstancesPolicy": "IgnoreNew",
        "RestartOnFailure/Interval": "PT1M",
        "RestartOnFailure/Count": "10",
    }
    assert {key: text(f"Settings/{key}") for key in settings} == settings


def test_the_task_passes_aegis_home_on(tmp_path: Path) -> None:
    from aegis.runs.autostart.task_scheduler import _command

    package = tmp_path / "aegis"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import os, sys, json; print(json.dumps([os.environ['AEGIS_HOME'], *sys.argv[1:]]))"
    )
    words = _command(job("/a 'b' \"c\"\\"))
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["/a 'b' \"c\"\\/home", "run", "/a 'b' \"c\"\\/quick.yaml"]


def test_names_are_safe_and_do_not_collide() -> None:
    names = [job(folder, name=f"{part}.yaml").name for folder in ("/a", "/b") for part in AWKWARD]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"aegis-[A-Za-z0-9-]+-[0-9a-f]{8}", name) for name in names)
    assert job("/a").name == job("/a").name
    assert Job("p", "C:\\x\\my.run.yaml", "C:\\x").name.startswith("aegis-my-run-")


def test_the_job_is_absolute_and_keeps_links_to_files(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "c.yaml").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "d.yaml").symlink_to(tmp_path / "real" / "c.yaml")
    one = autostart.this_job(
        Path("link/../d.yaml"), folder=tmp_path, environment={"AEGIS_HOME": "cache"}
    )
    assert one.config == str(tmp_path.resolve() / "d.yaml")
    assert (one.python, one.folder, one.aegis_home) == (
        sys.executable,
        str(tmp_path),
        str(tmp_path / "cache"),
    )
    assert autostart.this_job(Path("link/c.yaml"), folder=tmp_path, environment={}).config.endswith(
        "/real/c.yaml"
    )


def test_xdg_config_home_is_honoured() -> None:
    assert autostart.this_account({"XDG_CONFIG_HOME": "/x"}).systemd_units == Path(
        "/x/systemd/user"
    )
    for settings in ({}, {"XDG_CONFIG_HOME": "relative"}):
        assert (
            autostart.this_account(settings).systemd_units == Path.home() / ".config/systemd/user"
        )


@pytest.mark.parametrize("system", SYSTEMS)
def test_install_twice_then_remove_twice(system: str, account: Account) -> None:
    unit = planned(system, account)
    for _ in range(2):
        run = Recorder()
        commands = autostart.install(unit, run=run, find=found)
        assert unit.path.read_bytes() == unit.text.encode()
        assert commands[-len(unit.enable) :] == list(unit.enable)
        assert [command for command in run.commands if command != unit.probe] == commands
    run = Recorder()
    assert autostart.remove(unit, run=run)
    assert not unit.path.exists()
    assert [command for command in run.commands if command != unit.probe] == [
        *([unit.unload] if unit.unload else []),
        *unit.disable,
        *unit.refresh,
    ]
    unknown = Recorder(*(unit.probe or ()))
    assert autostart.remove(unit, run=unknown) is None
    assert unknown.commands == ([unit.probe] if unit.probe else [])


def test_the_commands_are_the_systems_own(account: Account) -> None:
    systemd, launchd, task = (planned(system, account) for system in SYSTEMS)
    file = f"{systemd.name}.service"
    assert autostart.install(systemd, run=Recorder(), find=found) == [
        ("systemctl", "--user", "daemon-reload"),
        ("systemctl", "--user", "enable", file),
        ("loginctl", "enable-linger", "me"),
    ]
    new, known = Recorder("print"), Recorder()
    bootstrap = ("launchctl", "bootstrap", "gui/501", str(launchd.path))
    assert autostart.install(launchd, run=new, find=found) == [bootstrap]
    assert autostart.install(launchd, run=known, find=found) == [
        ("launchctl", "bootout", f"gui/501/{launchd.name}"),
        bootstrap,
    ]
    assert account.logs.is_dir()
    assert autostart.install(task, run=Recorder(), find=found) == [
        ("schtasks", "/Create", "/TN", task.name, "/XML", str(task.path), "/F")
    ]
    assert autostart.remove(task, run=Recorder()) == [
        ("schtasks", "/Delete", "/TN", task.name, "/F")
    ]


def test_a_task_without_its_file_is_still_removed(account: Account) -> None:
    unit = planned("task-scheduler", account)
    assert autostart.remove(unit, run=Recorder()) == [unit.unload]


def test_a_failing_command_says_what_to_type_and_leaves_the_file(account: Account) -> None:
    unit = planned("systemd", account)
    with pytest.raises(
        AegisError,
        match=r"is written, but not enabled: `systemctl --user enable .*` failed with 1 \(no bus\)",
    ) as at:
        autostart.install(unit, run=Recorder("enable"), find=found)
    assert str(at.value).endswith(
        f"by hand, in this order: systemctl --user enable {unit.name}.service ; "
        "loginctl enable-linger me"
    )
    assert unit.path.is_file()
    with pytest.raises(AegisError, match="is not deleted yet: `systemctl --user disable") as raised:
        autostart.remove(unit, run=Recorder("disable"))
    assert str(raised.value).endswith(
        f"{unit.name}.service ; delete {unit.path} ; systemctl --user daemon-reload"
    )
    assert unit.path.is_file()


def test_an_unwritable_folder_is_named(account: Account) -> None:
    account.systemd_units.parent.mkdir()
    account.systemd_units.touch()
    with pytest.raises(AegisError, match="cannot be written"):
        autostart.install(planned("systemd", account), run=Recorder(), find=found)
    unit = planned("launchd", account)
    unit.path.mkdir(parents=True)
    with pytest.raises(AegisError, match="cannot be deleted"):
        autostart.remove(unit, run=Recorder("print"))


def test_what_cannot_work_is_refused_before_anything_is_written(
    account: Account, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match="systemctl is not on this machine"):
        autostart.install(planned("systemd", account), run=Recorder(), find=lambda _: None)
    with pytest.raises(BadInputError, match="or linux, macos, windows, got 'cron'"):
        planned("cron", account)
    with pytest.raises(BadInputError, match="no start-up system is known for plan9"):
        autostart.native_system("plan9")
    with pytest.raises(BadInputError, match="no line break"):
        autostart.this_job(Path("a\nb.yaml"), folder=tmp_path, environment={})
    with pytest.raises(BadInputError, match="holds a quote or a backslash"):
        autostart.plan(job("/a", python="/it's/python"), account, system="systemd")
    with pytest.raises(BadInputError, match=r"reads %...% in a path as a variable"):
        planned("task-scheduler", account, "C:\\%TEMP%")
    assert not account.systemd_units.parent.exists()


def test_native_systems() -> None:
    assert [autostart.native_system(platform) for platform in ("linux", "darwin", "win32")] == list(
        SYSTEMS
    )


def test_a_missing_program_is_a_status_not_a_traceback() -> None:
    assert autostart.run_command(("no-such-program-at-all",)) == (
        127,
        "no-such-program-at-all is not on this machine",
    )
    assert autostart.run_command((sys.executable, "-c", "print('a'); raise SystemExit(3)")) == (
        3,
        "a",
    )


@pytest.mark.parametrize(
    ("said", "meant"),
    [("linux", "systemd"), ("macOS", "launchd"), ("Windows", "task-scheduler")],
)
def test_a_system_may_be_called_by_its_machines(said: str, meant: str, account: Account) -> None:
    job = autostart.this_job(Path("c.yaml"), folder=Path.cwd(), environment={})
    assert autostart.plan(job, account, system=said) == autostart.plan(job, account, system=meant)
    with pytest.raises(BadInputError, match="or linux, macos, windows, got 'beos'"):
        autostart.plan(job, account, system="beos")
