from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import typer

from aegis.cli import watch as verb
from aegis.errors import ArtifactError, BadInputError
from aegis.runs import foreign_log, supervisor
from aegis.runs.health import SILENCE_S, Look, look, silence_of
from aegis.runs.heartbeat import FILE, Beat
from aegis.runs.process import Process, identify, this_process
from aegis.runs.record import LATEST, STAGES, Session, load, open_session
from aegis.runs.supervisor import (
    ASK,
    KILL,
    Child,
    Keeper,
    System,
    end,
    is_transient,
    only_watcher,
    resume_command,
    wait_s,
    watch_over,
)
from aegis.storage.lock import only_process

OOM = "CUDA out of memory"


class Time:
    """A machine whose clocks are turned by hand; sleeping turns them too."""

    def __init__(self) -> None:
        self.monotonic, self.wall, self.slept = 100.0, time.time(), []
        self.sent: list[tuple[int, int]] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.turn(seconds)

    def turn(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds

    def look(self, path: Path, last: Look | None = None, *, silence_s: float = 300) -> Look:
        return look(
            path,
            silence_s=silence_s,
            wall=lambda: self.wall,
            clock=lambda: self.monotonic,
            last=last,
        )

    def send(self, pid: int, number: int) -> None:
        self.sent.append((pid, number))


@pytest.fixture
def hands() -> Time:
    return Time()


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return open_session(tmp_path / "runs", config_fingerprint="a", resume=True)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def identity(process: subprocess.Popen[bytes]) -> Process:
    return identify(process.pid)


def gone() -> Process:
    return Process(
        os.getpid(), this_process().started - 1000, this_process().boot
    )  # our number, another process


def other_boot() -> Process:
    return replace(this_process(), boot="another")


def set_state(
    session: Session, state: str, *, process: Process | None = None, error: str | None = None
) -> Session:
    record = session.stage_record(STAGES[2])
    record.state, record.error = state, error
    session.stage = "failed" if state == "failed" else STAGES[2]
    session.process = process
    session.save()
    return session


def write_beat(session: Session, *, count: int, at: float) -> None:
    beat = Beat(count, at, STAGES[2], "training", 12, 40, 30.0, "")
    (session.folder / FILE).write_text(json.dumps(asdict(beat)))


# Looking at a session


def test_a_living_run_that_beats_is_running(session: Session, hands: Time) -> None:
    set_state(session, "running", process=this_process())
    write_beat(session, count=3, at=hands.wall - 20)
    session.add_snapshot(
        STAGES[2], session.folder / "checkpoints" / "a", step=10, seconds=1.0, size=5
    )
    found = hands.look(session.folder.parent / LATEST)
    assert (found.state, found.stage, found.pid, found.alive) == (
        "running",
        STAGES[2],
        os.getpid(),
        True,
    )
    assert (found.last_snapshot or {})["step"] == 10
    assert found.exit_code == 0
    wanted = "run state stage doing done total pid alive silent_s last_snapshot evidence resumes"
    assert list(found.to_json()) == wanted.split()
    json.dumps(found.to_json(), allow_nan=False)


def test_what_it_does_is_told_unless_an_earlier_process_wrote_it(
    session: Session, hands: Time
) -> None:
    set_state(session, "running", process=this_process())
    write_beat(session, count=3, at=hands.wall + 1)
    found = hands.look(session.folder)
    assert (found.doing, found.done, found.total) == ("training", 12, 40)
    write_beat(session, count=3, at=this_process().started - 50)
    assert hands.look(session.folder).doing is None


def test_finished_failed_and_stopped(session: Session, hands: Time) -> None:
    set_state(session, "failed", process=gone(), error="no\nluck")
    found = hands.look(session.folder)
    assert (found.state, found.evidence, found.exit_code) == (
        "failed",
        f"{STAGES[2]} failed: no luck",
        1,
    )
    set_state(session, "stopped", process=gone())
    found = hands.look(session.folder)
    assert (found.state, found.exit_code, found.rebooted) == ("stopped", 75, False)
    set_state(session, "stopped", process=other_boot())
    assert hands.look(session.folder).rebooted
    session.stage = "completed"
    session.save()
    found = hands.look(session.folder)
    assert (found.state, found.exit_code) == ("finished", 0)


@pytest.mark.parametrize(
    ("process", "evidence"),
    [
        (gone(), "gone without a word"),
        (other_boot(), "started anew"),
        (None, "no process is known"),
    ],
)
def test_a_run_without_its_process_is_dead(
    session: Session, hands: Time, process: Process | None, evidence: str
) -> None:
    set_state(session, "running", process=process)
    found = hands.look(session.folder)
    assert (found.state, found.alive, found.exit_code) == ("dead", False, 75)
    assert evidence in found.evidence


def test_a_dead_child_process_is_seen(
    session: Session, hands: Time, sleeper: subprocess.Popen[bytes]
) -> None:
    set_state(session, "running", process=identity(sleeper))
    assert hands.look(session.folder).state == "running"
    sleeper.kill()
    sleeper.wait()
    assert hands.look(session.folder).state == "dead"


def test_a_held_lock_says_alive_where_the_start_time_does_not_fit(
    session: Session, hands: Time
) -> None:
    set_state(session, "running", process=gone())
    with only_process(session.folder):
        assert hands.look(session.folder).state == "running"
    assert hands.look(session.folder).state == "dead"


def test_the_first_look_goes_by_the_wall_clock(session: Session, hands: Time) -> None:
    set_state(session, "running", process=this_process())
    write_beat(session, count=3, at=hands.wall)
    hands.wall += 301
    found = hands.look(session.folder)
    assert (found.state, found.exit_code, found.watched_s) == ("hung", 75, 0)
    hands.wall -= 100_000
    found = hands.look(session.folder)
    assert (found.state, found.silent_s) == ("running", 0)


def test_later_looks_go_by_the_count_and_the_own_clock(session: Session, hands: Time) -> None:
    set_state(session, "running", process=this_process())
    write_beat(session, count=3, at=hands.wall)
    found = hands.look(session.folder)
    hands.wall += 1_000_000
    found = hands.look(session.folder, found)
    assert found.state == "running"
    hands.wall -= 2_000_000
    hands.monotonic += 301
    found = hands.look(session.folder, found)
    assert (found.state, found.watched_s) == ("hung", 301)
    write_beat(session, count=4, at=5.0)  # by a clock that was set back to 1970
    found = hands.look(session.folder, found)
    assert (found.state, found.silent_s) == ("running", 0)


def test_the_silence_allowed_is_the_runs_own(session: Session, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("durable: {silence_s: 77.0}\n")
    session.command = {"argv": ["run", "a.yaml"], "cwd": str(tmp_path)}
    assert silence_of(session) == 77
    session.command["argv"] += ["--set", "durable.silence_s=88.0"]
    assert silence_of(session) == 88
    session.command["argv"] += ["--set=durable.silence_s=99.0"]
    assert silence_of(session) == 99
    for argv in ([], ["run", "gone.yaml"]):
        session.command["argv"] = argv
        assert silence_of(session) == SILENCE_S


def test_a_missing_or_damaged_run_is_told(tmp_path: Path, session: Session, hands: Time) -> None:
    with pytest.raises(BadInputError, match="no such run; give a session such as runs/latest"):
        hands.look(tmp_path / "nothing")
    with pytest.raises(BadInputError, match="neither a session nor a log"):
        hands.look(tmp_path)
    for file in session.folder.iterdir():
        file.write_text("{}")
    with pytest.raises(ArtifactError, match="no readable session record"):
        hands.look(session.folder)


# Looking at a foreign log

STEPS = [f"step {number}/200 loss: 0.5" for number in range(200)]
RECOVERED = [
    "Traceback (most recent call last):",
    '  File "a.py", line 1',
    "ModuleNotFoundError: No module named 'flash_attn'",
]


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ([*STEPS], "running"),
        ([*STEPS, "Training completed."], "finished"),
        ([*STEPS, "{'train_runtime': 12.3, 'train_loss': 0.5}", "bye"], "finished"),
        ([*STEPS, "Saving final model to out/"], "finished"),
        ([*STEPS, "学習が完了しました"], "finished"),
        ([*STEPS, "すべての処理が完了しました。"], "finished"),
        (["データの読み込みが完了しました", "エポック 1 の学習が完了しました"], "running"),
        (
            ["Epoch 1: training complete", "the model is written when training is finished"],
            "running",
        ),
        (["Training completed", "***** Running training *****", "step 1/9"], "running"),
        (["Training completed", *STEPS], "running"),
        ([*STEPS, "RuntimeError: CUDA error", "bye"], "failed"),
        ([*STEPS, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"], "failed"),
        ([*STEPS, "Killed"], "failed"),
        ([*STEPS, "[rank1]: OSError: no such file"], "failed"),
        ([*STEPS, "val_error: 0.5", "MeanSquaredError: 0.1"], "running"),
        ([*STEPS, "Segmentation fault (core dumped)"], "failed"),
        ([*STEPS, "{'loss': nan, 'epoch': 1}"], "failed"),
        ([*STEPS, "Training completed", "ValueError: cannot upload"], "failed"),
        (["RuntimeError: once", *STEPS], "running"),
        ([*RECOVERED], "failed"),
        ([*RECOVERED, "falling back to eager attention"], "running"),
        ([*RECOVERED, "step 1/200"], "running"),
        ([*RECOVERED, "import of flash_attn2 succeeded", "RuntimeError: other"], "failed"),
        ([*STEPS, "RuntimeError: in a worker", "Training completed"], "finished"),
        ([*STEPS, "Traceback (most recent call last):", "KeyboardInterrupt"], "stopped"),
    ],
)
def test_what_a_log_says(tmp_path: Path, hands: Time, lines: list[str], state: str) -> None:
    log = tmp_path / "train.log"
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = hands.look(tmp_path)
    assert found.state == state, found.evidence
    assert found.run == str(log)


@pytest.mark.parametrize("encoding", ["utf-8", "cp932", "utf-16"])
def test_japanese_logs_are_read_in_their_encoding(
    tmp_path: Path, hands: Time, encoding: str
) -> None:
    log = tmp_path / "train.out"
    text = "学習を開始\n" + "処理中です\n" * 100_000 + "学習完了\n"
    log.write_bytes(
        b"\xff\xfe" + text.encode("utf-16-le") if encoding == "utf-16" else text.encode(encoding)
    )
    found = hands.look(log)
    assert (found.state, found.evidence) == ("finished", "the log says: 学習完了")


@pytest.mark.skipif(os.name == "nt", reason="files are not sparse by themselves")
def test_of_a_huge_log_the_end_is_read(tmp_path: Path, hands: Time) -> None:
    log = tmp_path / "train.log"
    with log.open("wb") as file:
        file.write(b"Training completed\n")
        file.truncate(1 << 33)  # sparse: 8 GiB
        file.seek(1 << 33)
        file.write(b"\n 10%|#   | 1/10 [\r 40%|##  | 4/10 [00:01\r\n")
    begun = time.monotonic()
    found = hands.look(log)
    assert time.monotonic() - begun < 2
    assert (found.state, found.done, found.total) == ("running", 4, 10)
    assert foreign_log.read_tail(log, lines=1) == [" 40%|##  | 4/10 [00:01"]


def test_a_log_goes_silent_by_the_own_clock(tmp_path: Path, hands: Time) -> None:
    log = tmp_path / "train.log"
    log.write_text("step 1/9\n")
    found = hands.look(log)
    hands.wall += 100_000
    assert hands.look(log, found).state == "running"
    hands.monotonic += 400
    found = hands.look(log, found)
    assert (found.state, found.exit_code, found.alive, found.pid) == ("silent", 75, None, None)
    assert "its process is unknown" in found.evidence


def test_a_final_model_tells_the_end_of_a_silent_log(tmp_path: Path, hands: Time) -> None:
    log = tmp_path / "train.log"
    log.write_text("2026-01-02 03:04:05 step 1/9\n")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert hands.look(log).state == "running"
    hands.wall += 1000
    assert hands.look(log).state == "finished"
    os.utime(tmp_path / "model.safetensors", (1.0, 1.0))  # a base that lay there before
    assert hands.look(log).state == "silent"


def test_a_trainer_state_is_counted(tmp_path: Path, hands: Time) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    state = {"global_step": 5, "log_history": [{"loss": 0.5, "step": 1}], "max_steps": 9}
    (folder / "trainer_state.json").write_text(json.dumps(state, indent=2))
    found = hands.look(tmp_path)
    assert (found.state, found.done, found.total) == ("running", 5, 9)
    (folder / "trainer_state.json").write_text(json.dumps({**state, "global_step": 9}, indent=2))
    assert hands.look(tmp_path).state == "finished"


# Ending and starting again


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
        self.alarms: list[Look] = []
        self.system = System(
            lambda: hands.monotonic, lambda: hands.wall, hands.sleep, hands.send, self.start
        )
        self.keeper = Keeper(session.folder, self.said.append, max_resumes, 300, self.system)

    def start(self, command: Sequence[str], folder: Path, log: Path) -> Child:
        self.started.append((command, folder, log))
        self.children.append(Started(self.code))
        return self.children[-1]

    def tend(self) -> bool:
        return self.keeper.tend(self.hands.look(self.session.folder))

    def watch(self) -> Look:
        return watch_over(
            self.session.folder,
            interval_s=60,
            silence_s=300,
            say=self.said.append,
            alarm=self.alarms.append,
            keeper=self.keeper,
            system=self.system,
        )


@pytest.fixture
def dead(session: Session, tmp_path: Path) -> Session:
    session.command = {"argv": ["run", "a.yaml", "--no-auto-resume"], "cwd": str(tmp_path)}
    return set_state(session, "running", process=gone())


def test_waits_grow_to_a_cap() -> None:
    assert [wait_s(count) for count in (0, 1, 2, 5, 6, 7, 10_000)] == [
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
    told = [event["message"] for event in dead.rows("events") if event["kind"] == "watch"]
    assert [line for line in rig.said if line in told] == told
    assert hands.look(dead.folder).resumes == 3


def test_progress_forgives_the_resumes_before(dead: Session, hands: Time) -> None:
    rig = Rig(dead, hands, max_resumes=2)
    assert rig.tend()
    assert rig.tend()
    dead.add_snapshot(STAGES[2], dead.folder / "checkpoints" / "a", step=10, seconds=1.0, size=5)
    assert rig.tend()
    assert rig.tend()
    assert not rig.tend()
    assert hands.slept == [10, 20, 10, 20]


def test_a_started_process_has_time_to_take_over(dead: Session, hands: Time) -> None:
    rig = Rig(dead, hands, code=None)
    assert rig.tend()
    hands.turn(800)
    assert rig.tend()
    assert not rig.children[0].killed
    hands.turn(200)
    assert rig.tend()
    assert rig.children[0].killed
    assert rig.tend()
    assert len(rig.started) == 2
    set_state(dead, "running", process=this_process())  # taken over
    assert rig.tend()
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
    assert rig.tend()
    assert rig.tend()
    assert not rig.started
    assert [line for line in rig.said if "waiting for it to end" in line] == rig.said[:1]


def test_a_stopped_run_is_left_alone_unless_the_machine_started_anew(
    dead: Session, hands: Time
) -> None:
    set_state(dead, "stopped", process=gone())
    rig = Rig(dead, hands)
    assert rig.tend()
    assert not rig.started
    assert "stopped by the user" in rig.said[-1]
    set_state(dead, "stopped", process=other_boot())
    assert rig.tend()
    assert len(rig.started) == 1


def test_a_stop_by_the_watcher_itself_is_not_taken_for_the_users(
    dead: Session, hands: Time
) -> None:
    rig = Rig(dead, hands, code=1)
    assert rig.tend()
    set_state(
        dead, "stopped", process=dead.process
    )  # what the process wrote when it was asked; its successor died at once
    assert rig.tend()
    assert len(rig.started) == 2
    set_state(dead, "running", process=this_process())  # started by the user meanwhile
    assert rig.tend()
    set_state(dead, "stopped", process=gone())
    assert rig.tend()
    assert len(rig.started) == 2


def test_a_run_that_goes_on_by_itself_meanwhile_is_not_resumed(dead: Session, hands: Time) -> None:
    rig = Rig(dead, hands)
    with only_process(dead.folder):
        assert rig.keeper.tend(replace(hands.look(dead.folder), state="dead", alive=False))
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
    rig.keeper.system = rig.system
    hands.wall += 5000  # the clock was set forth, or the machine slept
    found = hands.look(dead.folder)
    assert found.state == "hung"
    assert rig.keeper.tend(found)
    assert not hands.sent
    assert "by the clock alone" in rig.said[-1]
    hands.turn(301)
    assert rig.keeper.tend(hands.look(dead.folder, found))
    assert hands.sent == [(process.pid, ASK)]
    assert len(rig.started) == 1


def test_a_process_is_asked_then_killed(hands: Time, sleeper: subprocess.Popen[bytes]) -> None:
    process = identity(sleeper)

    def send(pid: int, number: int) -> None:
        hands.send(pid, number)
        if number == KILL:
            sleeper.kill()
            sleeper.wait()

    assert end(process, System(clock=lambda: hands.monotonic, sleep=hands.sleep, send=send))
    assert hands.sent == [(process.pid, ASK), (process.pid, KILL)]
    assert sum(hands.slept) == 60


@pytest.mark.parametrize("process", [gone(), other_boot()])
def test_another_process_with_the_number_is_never_touched(hands: Time, process: Process) -> None:
    assert end(process, System(clock=lambda: hands.monotonic, sleep=hands.sleep, send=hands.send))
    assert not hands.sent


def test_a_number_reused_during_the_grace_is_not_killed(
    hands: Time, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(
        [True, True, False, False, False]
    )  # before asking, once in the grace, and then it is another's
    monkeypatch.setattr(supervisor, "is_alive", lambda _: next(answers))
    assert end(
        identity(sleeper), System(clock=lambda: hands.monotonic, sleep=hands.sleep, send=hands.send)
    )
    assert [number for _, number in hands.sent] == [ASK]


def test_a_process_that_cannot_be_ended_is_given_up(dead: Session, hands: Time) -> None:
    set_state(dead, "running", process=this_process())
    rig = Rig(dead, hands)
    found = replace(hands.look(dead.folder), state="hung", watched_s=301.0)
    assert not rig.keeper.tend(found)
    assert "cannot be ended" in rig.said[-1]
    assert hands.sent == [(os.getpid(), ASK), (os.getpid(), KILL)]
    assert not rig.started


def test_a_hung_process_of_unsure_identity_is_left(dead: Session, hands: Time) -> None:
    rig = Rig(dead, hands)
    found = replace(hands.look(dead.folder), state="hung", watched_s=301.0)
    assert rig.keeper.tend(found)
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

    rig.keeper.system = replace(rig.system, start=start)
    assert not rig.tend()
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


# Watching


def test_watching_alone_tells_of_a_death_and_goes_on_to_the_end(
    session: Session, hands: Time
) -> None:
    set_state(session, "running", process=gone())
    said: list[str] = []
    alarms: list[Look] = []
    system = System(clock=lambda: hands.monotonic, wall=lambda: hands.wall, sleep=hands.sleep)

    def alarm(found: Look) -> None:
        alarms.append(found)
        if found.state == "dead":
            session.stage = "completed"
            session.save()

    found = watch_over(
        session.folder, interval_s=7, silence_s=300, say=said.append, alarm=alarm, system=system
    )
    assert [alarm.state for alarm in alarms] == ["dead", "finished"]
    assert hands.slept == [7]
    assert found.state == "finished"
    assert len(said) == 2


def test_a_record_that_cannot_be_read_for_once_does_not_end_the_watching(
    session: Session, hands: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_state(session, "running", process=this_process())
    first, answers = hands.look(session.folder), iter(["look", "error", "error", "end"])

    def fake(*_: object, **__: object) -> Look:
        answer = next(answers)
        if answer == "error":
            raise OSError("busy")
        return first if answer == "look" else replace(first, state="finished")

    monkeypatch.setattr(supervisor, "look", fake)
    said: list[str] = []
    system = System(sleep=hands.sleep)
    watch_over(
        session.folder,
        interval_s=7,
        silence_s=300,
        say=said.append,
        alarm=lambda _: None,
        system=system,
    )
    assert [line for line in said if "cannot look now" in line] == [
        "cannot look now (busy); trying again"
    ]


# The verb


def watched(run: Path, **changes: object) -> Look | None:
    defaults = {
        "check_only": False,
        "auto_resume": False,
        "interval_s": 60,
        "silence_s": 300,
        "max_resumes": 5,
        "notify": None,
        "system": System(),
    }
    return verb.watched(run, **{**defaults, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("state", "code"), [("running", 75), ("failed", 1), ("completed", 0)])
def test_check_only_leaves_with_the_exit_code(
    session: Session, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    set_state(session, state, process=gone(), error="no luck")
    if state == "completed":
        session.stage = "completed"
        session.save()
    for as_json in (False, True):
        with pytest.raises(typer.Exit) as exit_:
            verb.watch(session.folder.parent / LATEST, check_only=True, json=as_json)
        assert exit_.value.exit_code == code
    line, *rest = capsys.readouterr().out.splitlines()
    assert line.startswith(session.session_id)
    assert json.loads("\n".join(rest))["run"] == str(session.folder)


def test_the_verb_says_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such run"):
        watched(tmp_path / "runs" / "latest", check_only=True)
    with pytest.raises(BadInputError, match="--check-only looks and does nothing"):
        watched(tmp_path, check_only=True, auto_resume=True)
    (tmp_path / "train.log").write_text("step 1/9\n")
    with pytest.raises(BadInputError, match="a foreign run can be watched and never resumed"):
        watched(tmp_path, auto_resume=True)


def test_ctrl_c_ends_the_watching(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    set_state(session, "running", process=this_process())

    def sleep(_: float) -> None:
        raise KeyboardInterrupt

    assert watched(session.folder, system=System(sleep=sleep)) is None
    assert watched(session.folder, system=System(sleep=sleep), auto_resume=True) is None
    assert "watching ended; the run is left as it is" in capsys.readouterr().err
    assert load(session.folder).process == this_process()


@pytest.mark.skipif(os.name == "nt", reason="written for a POSIX shell")
def test_the_users_command_finds_the_look_in_its_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = 'x"; touch hacked; echo $(touch hacked) `touch hacked`'
    found = Look(run=str(tmp_path / "a b"), state="failed", evidence=evil)
    out = tmp_path / "told"
    command = f'printf "%s\\n" "$AEGIS_RUN" "$AEGIS_STATE" "$AEGIS_MESSAGE" > {out}'
    said: list[str] = []
    verb.sound(found, command, said.append)
    assert out.read_text().splitlines() == [str(tmp_path / "a b"), "failed", f"a b failed: {evil}"]
    assert said == ["--notify: told of failed"]
    verb.sound(found, "exit 3", said.append)
    assert said[-1] == "--notify: the command ended with exit code 3; the run is not affected"
    assert "took longer than 0 s and was ended" in (
        verb.tell_command("sleep 30", found, limit_s=0.2) or ""
    )
    assert "cannot be started" in (verb.tell_command("true", replace(found, evidence="a\0b")) or "")
    assert capsys.readouterr().out == ""  # no bell where nobody hears it


def test_a_terminal_rings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    verb.sound(Look(run="a", state="failed", evidence="b"), None, lambda _: None)
    assert capsys.readouterr().out == "\a"


def test_the_signals_are_the_systems_own() -> None:
    wanted = ("CTRL_BREAK_EVENT", "SIGTERM") if os.name == "nt" else ("SIGTERM", "SIGKILL")
    assert tuple(getattr(signal, name) for name in wanted) == (ASK, KILL)
