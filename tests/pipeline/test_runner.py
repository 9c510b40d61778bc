"""The runner on steps that only write a line: what is done once, reused, stopped and told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aegis.config import parse_config
from aegis.errors import AegisError, StoppedError
from aegis.pipeline.context import StepContext
from aegis.pipeline.runner import ArtifactWriter, Runner
from aegis.pipeline.step import Stage, Step
from aegis.runs.events import Event, EventLog, LogMessage, Reporter, read_events
from aegis.runs.record import Session, load, open_session
from aegis.runs.signals import Interrupt


class Job:
    """Two stages of three steps in a folder of runs; `ran` names the steps that were computed."""

    def __init__(self, runs: Path) -> None:
        self.runs, self.ran, self.said = runs, list[str](), list[str]()
        self.settled = list[str]()
        self.interrupt = Interrupt()
        self.outside = "content"
        self.hooks: dict[str, Callable[[], None]] = {}
        self.reason: str | None = None

    def stages(self) -> tuple[Stage, ...]:
        one = Step("one", 1, (lambda _: self.outside,), ("seed",), self.write)
        two = Step(
            "two",
            1,
            ("one",),
            ("train.lr",),
            self.write,
            artifact="adapter",
            metrics=lambda folder: {"size": len((folder / "text").read_text())},
            settle=lambda context: self.settled.append(context.step),
            skip=lambda _: self.reason,
            summary="two has {size} characters",
        )
        three = Step("three", 1, ("one", "adapter"), ("train.ppo.lr",), self.write)
        last = Stage("last", (three,), published={"copy": "three/text"})
        return Stage("first", (one, two)), last

    def write(self, context: StepContext, folder: Path) -> None:
        self.ran.append(context.step)
        self.hooks.get(context.step, lambda: None)()
        (folder / "text").write_text(f"{context.step} {context.fingerprint}")

    def hear(self, event: Event) -> None:
        if isinstance(event, LogMessage):
            self.said.append(event.text)

    def run(
        self, *, until: str | None = None, reuse: bool = True, anew: bool = False, **settings: Any
    ) -> Session:
        config = parse_config(settings, where="t")
        session = open_session(
            self.runs,
            config_fingerprint=str(settings),
            resume=not anew,
            stages=[stage.name for stage in self.stages()],
        )
        session.take_over({})
        log = EventLog(session.folder)
        base: Any = None
        context = StepContext(config, base, session, Reporter(log, self.hear), self.interrupt)
        self.ran.clear()
        try:
            Runner(context, ArtifactWriter(self.runs, reuse=reuse), until=until).run(self.stages())
        finally:
            log.close()
        return load(session.folder)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "runs")


def states(session: Session) -> list[str]:
    return [stage.state for stage in session.stages]


def test_every_step_is_computed_once(job: Job) -> None:
    session = job.run()
    assert (session.stage, states(session)) == ("completed", ["completed"] * 2)
    assert job.ran == ["one", "two", "three"]
    first, last = session.stages
    assert first.artifacts == {"one": "one", "adapter": "adapter"}
    assert first.steps["two"]["state"] == "completed"
    assert first.steps["two"]["metrics"]["size"] > 0
    assert "one" not in first.steps
    assert job.said[0] == f"two has {first.steps['two']['metrics']['size']} characters"
    assert last.artifacts == {"three": "three", "copy": "text"}
    assert (session.folder / "text").read_text().startswith("three")
    again = job.run()
    assert (again.session_id, job.ran) == (session.session_id, [])
    assert [stage.skipped for stage in again.stages] == [True, True]
    assert job.said[-2:] == ["first: finished before, skipped", "last: finished before, skipped"]


def test_a_file_of_the_users_makes_nothing_stale_and_is_kept(job: Job) -> None:
    folder = job.run().folder
    (folder / "adapter" / "notes.md").write_text("mine")
    assert job.run().folder == folder
    assert job.ran == []
    job.outside = "other"
    job.run()
    assert job.ran == ["one", "two", "three"]
    assert not (folder / "adapter" / "notes.md").exists()
    assert (folder / "adapter.replaced" / "notes.md").read_text() == "mine"
    assert any("adapter/notes.md" in text and "adapter.replaced" in text for text in job.said)


def test_what_follows_from_an_artifact_is_done_where_it_is_reused_too(job: Job) -> None:
    job.run()
    job.run()
    assert ("two" in job.ran, job.settled) == (False, ["two", "two"])
    job.reason = "nothing to do"
    job.run()
    assert job.settled == ["two", "two"]


def test_what_a_setting_does_not_touch_is_reused(job: Job) -> None:
    first = job.run()
    second = job.run(train={"ppo": {"lr": 0.5}})
    assert second.session_id != first.session_id
    assert job.ran == ["three"]
    reused = "taken over from an earlier session: nothing that made it has changed"
    assert job.said.count(f"one/ {reused}") == job.said.count(f"adapter/ {reused}") == 1
    job.run(train={"weight_decay": 0.5})
    assert job.ran == []
    job.outside = "changed"
    job.run()
    assert job.ran == ["one", "two", "three"]
    job.run(anew=True, reuse=False)
    assert job.ran == ["one", "two", "three"]


def test_the_newest_artifact_is_reused(job: Job) -> None:
    job.run()
    anew = job.run(anew=True, reuse=False)
    job.run(train={"ppo": {"lr": 0.5}})
    (reused, *_) = [
        event
        for event in read_events(load(job.runs / "latest").folder)
        if event.kind == "artifact_reused"
    ]
    assert reused.session_id == anew.session_id  # type: ignore[attr-defined]


def test_a_damaged_artifact_is_computed_again(job: Job) -> None:
    session = job.run()
    (session.folder / "adapter" / "text").write_text("damaged")
    job.run()
    assert job.ran == ["two"]  # and what follows from it is the same as before


def test_a_run_ends_where_it_is_asked_to_and_goes_on(job: Job) -> None:
    session = job.run(until="one")
    assert (job.ran, states(session)) == (["one"], ["stopped", "pending"])
    assert session.stage == "first"
    session = job.run(until="two")
    assert (job.ran, states(session)) == (["two"], ["completed", "pending"])
    session = job.run(until="three")
    assert (job.ran, session.stage) == (["three"], "completed")
    with pytest.raises(ValueError, match="until must be one of one, two, three, got four"):
        job.run(until="four")


def test_a_step_with_nothing_to_do_has_no_artifact(job: Job) -> None:
    job.reason = "nothing to learn from"
    session = job.run()
    assert job.ran == ["one", "three"]
    assert job.said[0] == "nothing to learn from"
    assert session.stages[0].artifacts == {"one": "one"}
    assert session.stages[0].steps == {"two": {"state": "completed", "metrics": {}}}
    job.reason = None
    job.run()
    assert job.ran == ["two", "three"]


def test_a_failure_is_recorded_and_the_next_run_goes_on(job: Job) -> None:
    def fail() -> None:
        raise AegisError("no luck")

    job.hooks["two"] = fail
    with pytest.raises(AegisError, match="no luck"):
        job.run()
    session = load(job.runs / "latest")
    assert (session.stage, states(session)) == ("failed", ["failed", "pending"])
    assert session.stages[0].error == "no luck"
    assert not (session.folder / "adapter").exists()
    del job.hooks["two"]
    session = job.run()
    assert job.ran == ["two", "three"]
    assert session.stages[0].error is None
    assert session.stages[0].attempts == 2
    outcomes = [row["outcome"] for row in session.rows("attempts")]
    assert outcomes == ["failed", "completed", "completed"]


def test_a_stop_keeps_what_is_finished(job: Job) -> None:
    def stop() -> None:
        job.interrupt.requested = "SIGTERM"
        job.interrupt.check()

    job.hooks["two"] = stop
    with pytest.raises(StoppedError, match="SIGTERM"):
        job.run()
    session = load(job.runs / "latest")
    assert (session.stage, states(session)) == ("first", ["stopped", "pending"])
    assert session.stages[0].steps["two"]["state"] == "running"


def test_the_events_tell_the_whole_run(job: Job) -> None:
    session = job.run()
    kinds = [event.kind for event in read_events(session.folder) if event.kind != "message"]
    step = ["step_begun", "artifact_written", "step_ended"]
    assert kinds == [
        *("stage_begun", *step, *step, "stage_ended"),
        *("stage_begun", *step, "stage_ended"),
    ]
    job.run()
    again = list(read_events(session.folder))[-5:]
    assert [getattr(event, "outcome", "") for event in again] == ["", "", "skipped", "skipped", ""]


def test_a_journal_goes_with_the_step_that_it_was_for(job: Job) -> None:
    def keep() -> None:
        folder = job.runs / "latest" / "checkpoints"
        for name in ("first/one.shards.jsonl", "last/three/snapshot.jsonl"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("")

    job.hooks["one"] = keep
    session = job.run()
    kept = (session.folder / "checkpoints").rglob("*.jsonl")
    assert [path.name for path in kept] == ["snapshot.jsonl"]


def test_a_finished_step_leaves_the_journal_of_the_next_one_alone(job: Job) -> None:
    """Killed in the second step of a stage, a run finds the first one finished."""
    found: list[int] = []
    write = job.write

    def journaled(context: StepContext, folder: Path) -> None:
        if context.step == "two":
            journal = context.journal()
            found.append(len(journal.values))
            journal("shard", lambda: 1)
        write(context, folder)

    job.write = journaled
    job.hooks["two"] = cut_off
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            job.run()
    assert job.ran == ["two"]
    assert found == [0, 1]
    job.hooks.clear()
    folder = job.run().folder / "checkpoints"
    assert not list(folder.rglob("*.jsonl"))


def cut_off() -> None:
    raise KeyboardInterrupt
