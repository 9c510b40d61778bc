"""Run stages of steps: each step once, whatever ends the process in between."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from aegis.errors import StoppedError
from aegis.pipeline.context import StepContext
from aegis.pipeline.step import Stage, Step
from aegis.runs.events import (
    ArtifactReused,
    ArtifactWritten,
    StageBegun,
    StageEnded,
    StepBegun,
    StepEnded,
    utc_now,
)
from aegis.runs.record import StageRecord, session_folders
from aegis.storage.artifact import adopt, is_current, read_manifest, stranger, writing
from aegis.storage.files import write_text


class ArtifactWriter:
    """Has a step write its artifact, unless it is there already.

    Args:
        reuse: also take artifacts over from earlier sessions, newest first.
    """

    def __init__(self, runs: Path, *, reuse: bool) -> None:
        self.sessions = session_folders(runs) if reuse else []

    def write(self, step: Step, context: StepContext) -> bool:
        """Write or reuse the step's artifact; return True if it had to be computed."""
        name, target, reporter = step.artifact, context.artifact(step.artifact), context.reporter
        facts, begun = {"name": name, "fingerprint": context.fingerprint}, time.monotonic()
        kept = stranger(target)
        session_id = self._reuse(target, context.fingerprint)
        if session_id is None:
            with writing(target, kind=name, fingerprint=context.fingerprint) as staging:
                step.run(context, staging)
            seconds = round(time.monotonic() - begun, 2)
            reporter.emit(ArtifactWritten(**facts, seconds=seconds))
        else:
            reporter.emit(ArtifactReused(**facts, session_id=session_id))
            if session_id != target.parent.name:
                text = "taken over from an earlier session: nothing that made it has changed"
                reporter.message(f"{name}/ {text}")
        if kept and session_id != target.parent.name:
            text = f"no manifest names {name}/{kept}: the folder that held it is kept"
            reporter.message(f"{text} beside the new one, as {name}.replaced")
        context.contents[name] = read_manifest(target).files
        return session_id is None

    def _reuse(self, target: Path, fingerprint: str) -> str | None:
        """Return the id of the session whose artifact `target` is now; None where there is none."""
        if is_current(target, fingerprint):
            return target.parent.name
        for folder in self.sessions:
            if adopt(target, [folder / target.name], fingerprint):
                return folder.name
        return None


class Runner:
    """Runs stages in order, and records how each stands.

    Args:
        writer: writes or reuses the artifacts.
        until: the step after which to end; None for all.
        after_step: frees what a step may have left in memory.
    """

    def __init__(
        self,
        context: StepContext,
        writer: ArtifactWriter,
        *,
        until: str | None = None,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.context, self.writer, self.until, self.after_step = context, writer, until, after_step

    def run(self, stages: Sequence[Stage]) -> bool:
        """Run what is not done; return True if all is done, False if `until` is reached.

        Raises:
            StoppedError: if a stop was asked for; what was finished is kept.
            Exception: what a step raised; the session is then marked as failed.
        """
        names = [step.name for stage in stages for step in stage.steps]
        if self.until is not None and self.until not in names:
            raise ValueError(f"until must be one of {', '.join(names)}, got {self.until}")
        for stage in stages:
            self.context.interrupt.check()
            if self._run_stage(stage) and stage is not stages[-1]:
                return False
        session = self.context.session
        session.stage = "completed"
        session.save()
        return True

    def _run_stage(self, stage: Stage) -> bool:
        """Run a stage; return True if `until` is one of its steps."""
        session, record = self.context.session, self.context.session.stage_record(stage.name)
        session.stage, record.state, record.error = stage.name, "running", None
        record.attempts += 1
        session.save()
        attempt, started, begun = session.begin_attempt(stage.name), utc_now(), time.monotonic()
        self.context.reporter.emit(StageBegun(stage=stage.name))

        def end(state: str, outcome: str) -> float:
            seconds = round(time.monotonic() - begun, 2)
            record.state = state
            session.save()
            session.end_attempt(attempt, outcome)
            event = StageEnded(
                stage=stage.name, outcome=outcome, seconds=seconds, error=record.error
            )
            self.context.reporter.emit(event)
            return seconds

        try:
            computed, steps = self._run_steps(stage, record)
        except (KeyboardInterrupt, StoppedError):
            end("stopped", "stopped")
            raise
        except BaseException as error:
            session.stage, record.error = "failed", str(error) or type(error).__name__
            with contextlib.suppress(Exception):  # the first error is the one to report
                end("failed", "failed")
            raise
        if len(steps) < len(stage.steps):
            end("stopped", "stopped")
            return True
        record.artifacts = self._artifacts(stage)
        record.skipped = not computed
        if computed or record.seconds is None:
            record.started, record.seconds = started, round(time.monotonic() - begun, 2)
        seconds = end("completed", "completed" if computed else "skipped")
        result = f"done in {seconds:.0f} s" if computed else "finished before, skipped"
        self.context.reporter.message(f"{stage.name}: {result}")
        return self.until in steps

    def _run_steps(self, stage: Stage, record: StageRecord) -> tuple[bool, list[str]]:
        """Run the steps as far as `until`; return whether any was computed, and their names."""
        stage.check(replace(self.context, stage=stage.name))
        computed, done = False, []
        for step in stage.steps:
            computed |= self._run_step(stage.name, step, record)
            self.after_step()
            done.append(step.name)
            if step.name == self.until:
                break
        return computed, done

    def _artifacts(self, stage: Stage) -> dict[str, str]:
        """Publish the files of a finished stage; return all that it made, by name."""
        folder = self.context.session.folder
        for path in stage.published.values():
            text = (folder / path).read_text(encoding="utf-8")
            target = folder / Path(path).name
            if not target.is_file() or target.read_text(encoding="utf-8") != text:
                write_text(target, text)
        made = [step.artifact for step in stage.steps if step.artifact in self.context.contents]
        published = {name: Path(path).name for name, path in stage.published.items()}
        return {name: name for name in made} | published

    def _run_step(self, stage: str, step: Step, record: StageRecord) -> bool:
        session = self.context.session
        context = replace(self.context, stage=stage, step=step.name)
        context = replace(context, fingerprint=step.fingerprint(context))
        before = record.steps.get(step.name, {}).get("metrics", {})
        if step.metrics:
            record.steps[step.name] = {"state": "running", "metrics": before}
            session.save()
        begun, outcome, names = time.monotonic(), "failed", {"stage": stage, "step": step.name}
        context.reporter.emit(StepBegun(**names, fingerprint=context.fingerprint))
        try:
            reason = step.skip(context)
            if reason:
                context.reporter.message(reason)
            computed = not reason and self.writer.write(step, context)
            if not reason:
                step.settle(context)
            outcome = "completed" if computed else "skipped"
        except (KeyboardInterrupt, StoppedError):
            outcome = "stopped"
            raise
        finally:
            seconds = round(time.monotonic() - begun, 2)
            context.reporter.emit(StepEnded(**names, outcome=outcome, seconds=seconds))
        _remove_journals(context.unfinished, step.name)
        if step.metrics:
            metrics = {} if reason else step.metrics(context.artifact(step.artifact))
            record.steps[step.name] = {"state": "completed", "metrics": metrics}
            session.save()
            if metrics and step.summary:
                context.reporter.message(step.summary.format(**metrics))
        return computed


def _remove_journals(folder: Path, step: str) -> None:
    """Remove what a finished step had worked out on the way; not what another has."""
    with contextlib.suppress(OSError):  # absent, or it holds snapshots
        for path in folder.glob(f"{step}.*"):
            path.unlink()
        folder.rmdir()
