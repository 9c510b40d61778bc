from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from aegis.errors import ArtifactError, BadInputError
from aegis.runs import supervisor
from aegis.runs.events import WatcherAction, read_events
from aegis.runs.health import RunStatus
from aegis.runs.process import Process, this_process
from aegis.runs.record import Session, open_session
from aegis.runs.supervisor import (
    ASK,
    KILL,
    Child,
    Supervisor,
    System,
    WatchSettings,
    backoff_s,
    end_process,
    is_transient,
    only_watcher,
    resume_command,
    watch_over,
)
from aegis.storage.lock import only_process
from tests.runs.conftest import STAGES, Time, gone, identity, other_boot, set_state

OOM = "CUDA out of memory"


class Started:
    """A process that ended, or not, with this exit code."""

    def __init__(self, code: int | None) -> None:
        self.pid, self.code, self.killed = 4242, code, False

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.code, self.killed = -9, True


class Rig:
    """A keeper whose processes only pretend, and what it did."""

    def __init__(
        self, session: Session, hands: Time, *, code: int | None = 1, max_resumes: int = 5
    ) -> None:
        self.session, self.hands, self.code = session, hands, code
        self.started: list[tuple[Sequence[str], Path, Path]] = []
        self.children: list[Started] = []
        self.said: list[str] = []
        self.alarms: list[RunStatus] = []
        self.system = System(
            lambda: hands.monotonic, lambda: hands.wall, hands.sleep, hands.send, self.start
        )
        self.settings = WatchSettings(60, 300, max_resumes)
        self.supervisor = Supervisor(session.folder, self.said.append, self.settings, self.system)

    def start(self, command: Sequence[str], folder: Path, log: Path) -> Child:
        self.started.append((command, folder, log))
        self.children.append(Started(self.code))
        return self.children[-1]

    def handle(self) -> bool:
        return self.supervisor.handle(self.hands.status(self.session.folder))

    def watch(self) -> RunStatus:
        return watch_over(
            self.session.folder,
            self.settings,
            say=self.said.append,
            alarm=self.alarms.append,
            supervisor=self.supervisor,
            system=self.system,
        )


@pytest.fixture
def dead(session: Session, tmp_path: Path) -> Session:
    session.command = {"argv": ["run", "a.yaml", "--no-auto-resume"], "cwd": str(tmp_path)}
    return set_state(session, "running", process=gone())


def test_waits_grow_to_a_cap() -> None:
    assert [backoff_s(count) for count in (0, 1, 2, 5, 6, 7, 10_000)] == [
        10,
        20,
        40,
        320,
        600,
        600,
        600,
    ]


def test_a_dead_run_is_resumed_with_growing_waits_and_given_up(
    dead: Session, hands: Time, tmp_path: Path
) -> None:
    rig = Rig(dead, hands, max_resumes=3)
    found = rig.watch()
    assert [seconds for seconds in hands.slept if seconds != 60] == [10, 20, 40]
    command, folder, log = rig.started[0]
    assert command == [
        sys.executable,
        "-m",
        "aegis",
        "run",
        "a.yaml",
    ]  # --no-auto-resume would begin anew
    assert (folder, log) == (tmp_path, dead.folder / "resume.log")
    assert len(rig.started) == 3
    assert "3 resumes in a row got nowhere" in rig.said[-1]
    assert "given up: 3 resumes" in found.evidence
    assert rig.alarms == [found]
    assert found.exit_code == 75
    told = [action.text for action in read_events(dead.folder, WatcherAction)]
    assert [line for line in rig.said if line in told] == told
    assert hands.status(dead.folder).resumes == 3


def test_progress_forgives_the_resumes_before(dead: Session, hands: Time) -> None:
    rig = Rig(dead, hands, max_resumes=2)
    assert rig.handle()
    assert rig.handle()
    dead.add_snapshot(STAGES[2], dead.folder / "checkpoints" / "a", step=10, seconds=1.0, size=5)
    assert rig.handle()
    assert rig.handle()
    assert not rig.handle()
    assert hands.slept == [10, 20, 10, 20]


def test_a_started_process_has_time_to_take_over(dead: Session, hands: Time) -> None:
    rig = Rig(dead, hands, code=None)
    assert rig.handle()
    hands.turn(800)
    assert rig.handle()
    assert not rig.children[0].killed
    hands.turn(200)
    assert rig.handle()
    assert rig.children[0].killed
    assert rig.handle()
    assert len(rig.started) == 2
    set_state(dead, "running", process=this_process())  # taken over
    assert rig.handle()
    assert len(rig.started) == 2


@pytest.mark.parametrize(
    ("code", "message"),
    [(2, "ended with exit code 2, bad input"), (0, "worked on another session")],
)
def test_bad_input_and_other_settings_are_never_resumed(
    dead: Session, hands: Time, code: int, message: str
) -> None:
    rig = Rig(dead, hands, code=code)
    assert rig.watch().state == "dead"
    assert len(rig.started) == 1
    assert message in rig.said[-1]


def test_a_failed_run_is_resumed_only_if_it_may_succeed(dead: Session, hands: Time) -> None:
    set_state(dead, "failed", process=gone(), error="train.lr must be > 0")
    rig = Rig(dead, hands, max_resumes=1)
    assert rig.watch().exit_code == 1
    assert not rig.started
    assert "another try would not mend" in rig.said[-1]
    set_state(dead, "failed", process=gone(), error=OOM)
    assert rig.watch().exit_code == 1
    assert len(rig.started) == 1
    assert is_transient("runs: the disk is full")
    assert not is_transient("labels.jsonl:3: decision 'X' is not one of ALLOW")


def test_a_failed_run_whose_process_lives_is_waited_for(dead: Session, hands: Time) -> None:
    set_state(dead, "failed", process=this_process(), error=OOM)
    rig = Rig(dead, hands)
    assert rig.handle()
    assert rig.handle()
    assert not rig.started
    assert [line for line in rig.said if "waiting for it to end" in line] == rig.said[:1]


def test_a_stopped_run_is_left_alone_unless_the_machine_started_anew(
    dead: Session, hands: Time
) -> None:
    set_state(dead, "stopped", process=gone())
    rig = Rig(dead, hands)
    assert rig.handle()
    assert not rig.started
    assert "stopped by the user" in rig.said[-1]
    set_state(dead, "stopped", process=other_boot())
    assert rig.handle()
    assert len(rig.started) == 1


def test_a_stop_by_the_watcher_itself_is_not_taken_for_the_users(
    dead: Session, hands: Time
) -> None:
    rig = Rig(dead, hands, code=1)
    assert rig.handle()
    set_state(
        dead, "stopped", process=dead.process
    )  # what the process wrote when it was asked; its successor died at once
    assert rig.handle()
    assert len(rig.started) == 2
    set_state(dead, "running", process=this_process())  # started by the user meanwhile
    assert rig.handle()
    set_state(dead, "stopped", process=gone())
    assert rig.handle()
    assert len(rig.started) == 2


def test_a_run_that_goes_on_by_itself_meanwhile_is_not_resumed(dead: Session, hands: Time) -> None:
    rig = Rig(dead, hands)
    with only_process(dead.folder):
        assert rig.supervisor.handle(replace(hands.status(dead.folder), state="dead", alive=False))
    assert not rig.started
    assert "goes on by itself" in rig.said[-1]


def test_a_hung_run_is_ended_after_a_silence_of_the_own_clock_and_resumed(
    dead: Session, hands: Time, sleeper: subprocess.Popen[bytes]
) -> None:
    process = identity(sleeper)
    set_state(dead, "running", process=process)
    rig = Rig(dead, hands, code=None)
    rig.system = replace(
        rig.system,
        send=lambda pid, number: (hands.send(pid, number), sleeper.kill(), sleeper.wait())[0],
    )
    rig.supervisor.system = rig.system
    hands.wall += 5000  # the clock was set forth, or the machine slept
    found = hands.status(dead.folder)
    assert found.state == "hung"
    assert rig.supervisor.handle(found)
    assert not hands.sent
    assert "by the clock alone" in rig.said[-1]
    hands.turn(301)
    assert rig.supervisor.handle(hands.status(dead.folder, found))
    assert hands.sent == [(process.pid, ASK)]
    assert len(rig.started) == 1


def test_a_process_is_asked_then_killed(hands: Time, sleeper: subprocess.Popen[bytes]) -> None:
    process = identity(sleeper)

    def send(pid: int, number: int) -> None:
        hands.send(pid, number)
        if number == KILL:
            sleeper.kill()
            sleeper.wait()

    assert end_process(process, System(clock=lambda: hands.monotonic, sleep=hands.sleep, send=send))
    assert hands.sent == [(process.pid, ASK), (process.pid, KILL)]
    assert sum(hands.slept) == 60


@pytest.mark.parametrize("process", [gone(), other_boot()])
def test_another_process_with_the_number_is_never_touched(hands: Time, process: Process) -> None:
    assert end_process(
        process, System(clock=lambda: hands.monotonic, sleep=hands.sleep, send=hands.send)
    )
    assert not hands.sent


def test_a_number_reused_during_the_grace_is_not_killed(
    hands: Time, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(
        [True, True, False, False, False]
    )  # before asking, once in the grace, and then it is another's
    monkeypatch.setattr(supervisor, "is_alive", lambda _: next(answers))
    assert end_process(
        identity(sleeper), System(clock=lambda: hands.monotonic, sleep=hands.sleep, send=hands.send)
    )
    assert [number for _, number in hands.sent] == [ASK]


def test_a_process_that_cannot_be_ended_is_given_up(dead: Session, hands: Time) -> None:
    set_state(dead, "running", process=this_process())
    rig = Rig(dead, hands)
    found = replace(hands.status(dead.folder), state="hung", watched_s=301.0)
    assert not rig.supervisor.handle(found)
    assert "cannot be ended" in rig.said[-1]
    assert hands.sent == [(os.getpid(), ASK), (os.getpid(), KILL)]
    assert not rig.started


def test_a_hung_process_of_unsure_identity_is_left(dead: Session, hands: Time) -> None:
    rig = Rig(dead, hands)
    found = replace(hands.status(dead.folder), state="hung", watched_s=301.0)
    assert rig.supervisor.handle(found)
    assert "cannot be told for certain" in rig.said[-1]
    assert not hands.sent


def test_what_cannot_be_resumed_says_why(dead: Session, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the record holds no command"):
        resume_command(replace(dead, command={}))
    with pytest.raises(ArtifactError, match="was started in is gone"):
        resume_command(
            replace(dead, command={"argv": ["run", "a.yaml"], "cwd": str(tmp_path / "moved")})
        )
    open_session(dead.folder.parent, config_fingerprint="a", resume=False)
    with pytest.raises(ArtifactError, match="a newer session of the same settings"):
        resume_command(dead)


def test_a_command_that_cannot_be_started_is_given_up(dead: Session, hands: Time) -> None:
    rig = Rig(dead, hands)

    def start(*_: object) -> Child:
        raise OSError("no room for a process")

    rig.supervisor.system = replace(rig.system, start=start)
    assert not rig.handle()
    assert "cannot be started (no room for a process)" in rig.said[-1]


def test_one_watcher_resumes(session: Session) -> None:
    with (
        only_watcher(session.folder),
        pytest.raises(BadInputError, match="another aegis watch --auto-resume is at work"),
        only_watcher(session.folder),
    ):
        pass


@pytest.mark.skipif(os.name == "nt", reason="sessions of processes are POSIX")
def test_a_started_process_is_on_its_own_and_prints_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "resume.log"
    log.write_text("before\n")
    code = "import os; print(os.getcwd()); print(os.getsid(0) == os.getpid())"
    child = supervisor.start_process([sys.executable, "-S", "-c", code], tmp_path, log)
    assert isinstance(child, subprocess.Popen)
    assert child.wait(30) == 0
    assert log.read_text() == f"before\n{tmp_path}\nTrue\n"


def test_watching_alone_tells_of_a_death_and_goes_on_to_the_end(
    session: Session, hands: Time
) -> None:
    set_state(session, "running", process=gone())
    said: list[str] = []
    alarms: list[RunStatus] = []
    system = System(clock=lambda: hands.monotonic, wall=lambda: hands.wall, sleep=hands.sleep)

    def alarm(found: RunStatus) -> None:
        alarms.append(found)
        if found.state == "dead":
            session.stage = "completed"
            session.save()

    found = watch_over(
        session.folder, WatchSettings(7, 300), say=said.append, alarm=alarm, system=system
    )
    assert [alarm.state for alarm in alarms] == ["dead", "finished"]
    assert hands.slept == [7]
    assert found.state == "finished"
    assert len(said) == 2


def test_a_record_that_cannot_be_read_for_once_does_not_end_the_watching(
    session: Session, hands: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_state(session, "running", process=this_process())
    first, answers = hands.status(session.folder), iter(["look", "error", "error", "end"])

    def fake(*_: object, **__: object) -> RunStatus:
        answer = next(answers)
        if answer == "error":
            raise OSError("busy")
        return first if answer == "look" else replace(first, state="finished")

    monkeypatch.setattr(supervisor, "read_status", fake)
    said: list[str] = []
    system = System(sleep=hands.sleep)
    watch_over(
        session.folder,
        WatchSettings(7, 300),
        say=said.append,
        alarm=lambda _: None,
        system=system,
    )
    assert [line for line in said if "cannot look now" in line] == [
        "cannot look now (busy); trying again"
    ]


def test_the_signals_are_the_systems_own() -> None:
    wanted = ("CTRL_BREAK_EVENT", "SIGTERM") if os.name == "nt" else ("SIGTERM", "SIGKILL")
    assert tuple(getattr(signal, name) for name in wanted) == (ASK, KILL)
