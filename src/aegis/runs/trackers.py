"""Curves of every training: in TensorBoard's files always, in MLflow where the user asks for it.

A tracker only looks on. One that fails is reported once and left out; the training goes on, and
draws the same random numbers as without it. No snapshot holds anything for it: what a tracker lacks
after a kill or a power cut is written again from the training's own history, and what it has too
much (steps after the snapshot that was resumed from) is superseded.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from aegis.errors import MissingPackageError
from aegis.runs.events import Event, Metrics, TrainingBegun
from aegis.storage.files import sync_file

TENSORBOARD = "tensorboard"
_EXPERIMENT = "aegis"
_FLUSH_S = 20
# Set unless the user has set them: no telemetry, and a server that is gone costs seconds.
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def require_trackers(names: Iterable[str]) -> None:
    """Check that every tracker asked for is installed.

    Raises:
        MissingPackageError: if one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(f"tracking: {name} is not installed; run: pip install {name}")


class Tracker(Protocol):
    """Where curves go."""

    def begin(self, done: int) -> int:
        """Get ready to go on after `done` steps; return the first step wanted, 0 for all."""
        ...

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, finished: bool) -> None: ...


class Trackers:
    """Subscriber that writes the metrics of one training to every tracker that works.

    Args:
        makers: by name; a tracker is made when the training begins.
        say: gets one line for each that fails.
        guard: what trackers are made and begun in; it puts the training's random generators back.
    """

    def __init__(
        self,
        makers: Mapping[str, Callable[[], Tracker]],
        *,
        say: Callable[[str], None],
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._makers, self._say, self._guard = makers, say, guard
        self._open = dict[str, Tracker]()

    def __call__(self, event: Event) -> None:
        if isinstance(event, TrainingBegun):
            with self._guard():
                for name in self._makers:
                    self._attempt(name, self._begin, name, event)
        elif isinstance(event, Metrics):
            for name, tracker in list(self._open.items()):
                self._attempt(name, tracker.write, event.step, event.values)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name, tracker in list(self._open.items()):
            self._attempt(name, tracker.close, kind is None)
        self._open.clear()

    def _begin(self, name: str, event: TrainingBegun) -> None:
        """Open a tracker and write what it lacks of the training's history."""
        tracker = self._makers[name]()
        first = tracker.begin(event.done)
        for row in sorted(event.history, key=lambda row: row.step):
            if row.step >= first:
                tracker.write(row.step, row.values)
        self._open[name] = tracker

    def _attempt(self, name: str, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:  # whatever a tracker raises, the training is worth more
            self._open.pop(name, None)
            reason = (str(error).splitlines() or [""])[0][:200]
            self._say(
                f"tracking: {name} failed ({type(error).__name__}: {reason}); "
                "the training goes on without it"
            )


def open_trackers(
    names: Iterable[str],
    *,
    session: Path,
    training: str,
    fingerprint: str,
    say: Callable[[str], None] = lambda _: None,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Trackers:
    """Return the trackers of one training in a session.

    Args:
        names: those asked for; TensorBoard's files are written in any case.
        session: the session's folder, in the folder of all runs.
        training: `sft`, `reward`, `ppo` …: names the TensorBoard folder and the MLflow run.
        fingerprint: of what the training is made of; another one makes another MLflow run.
        guard: as of `Trackers`.
    """
    makers: dict[str, Callable[[], Tracker]] = {
        TENSORBOARD: lambda: TensorBoard(session / TENSORBOARD / training)
    }
    if "mlflow" in names:
        name, tag = f"{session.name}/{training}/{fingerprint[:8]}", f"{session.name}:{fingerprint}"
        makers["mlflow"] = lambda: MLflow(name, tag=tag, folder=session.parent)
    return Trackers(makers, say=say, guard=guard)


class TensorBoard:
    """Event files in one folder, read with `tensorboard --logdir`.

    A file that a kill cut short ends at some step, perhaps in its middle: from that step on
    everything is written again, and a START event tells TensorBoard to forget what it had read from
    there on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def begin(self, done: int) -> int:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names, which begin with the second they were
        # made in. After those of this very second, or of a clock that has been put back since, a
        # new one would not count: all is written again.
        new_name = f"events.out.tfevents.{int(time.time()):010d}"
        if any(path.name[: len(new_name)] >= new_name for path in _event_files(self.folder)):
            for path in _event_files(self.folder):
                path.unlink()
        last = last_step(self.folder)
        self._writer = EventFileWriter(str(self.folder), flush_secs=_FLUSH_S)
        if last is None:
            return 0
        first = min(last, done + 1)
        self._add(first, session_log={"status": "START"})  # what was there from here on is gone
        return first

    def write(self, step: int, values: Mapping[str, float]) -> None:
        rows = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self._add(step, summary={"value": rows})

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto import event_pb2

        message = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue] - made at import
        self._writer.add_event(message(step=step, wall_time=time.time(), **content))

    def close(self, finished: bool) -> None:
        self._writer.close()
        for path in _event_files(self.folder):
            sync_file(path)


def last_step(folder: Path) -> int | None:
    """Return the last step that TensorBoard would show of this folder; None for none."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    last: int | None = None
    for path in _event_files(folder):
        for event in EventFileLoader(str(path)).Load():
            if event.HasField("session_log"):
                last = None if last is None else min(last, event.step - 1)
            elif event.HasField("summary"):
                last = event.step if last is None else max(last, event.step)
    return last


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*tfevents*"))


class MLflow:
    """A run in the experiment `aegis`, which its tag finds again; on this machine (`mlflow.db`
    beside the sessions) unless MLFLOW_TRACKING_URI is set.

    MLflow keeps every value it is sent, so a step that it has already is not sent again.
    """

    def __init__(self, name: str, *, tag: str, folder: Path) -> None:
        self.name, self.tag, self.folder = name, tag, folder.absolute()
        self._last_steps: dict[str, int] = {}
        self._client: Any = None
        self._run_id = ""

    def begin(self, done: int) -> int:
        for name, value in _MLFLOW_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        local = f"sqlite:///{(self.folder / 'mlflow.db').as_posix()}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local
        self._client = client = MlflowClient(tracking_uri=uri)
        known = client.get_experiment_by_name(_EXPERIMENT)
        experiment = known.experiment_id if known else client.create_experiment(_EXPERIMENT)
        runs = client.search_runs([experiment], f"tags.aegis_mark = '{self.tag}'", max_results=1)
        if runs:
            run = runs[0]
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            tags = {"aegis_mark": self.tag}
            run = client.create_run(experiment, run_name=self.name, tags=tags)
        self._run_id = run.info.run_id
        self._last_steps = {
            key: max(metric.step for metric in client.get_metric_history(self._run_id, key))
            for key in run.data.metrics
        }
        return 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = round(time.time() * 1000)
        new = [
            Metric(key, value, now, step)
            for key, value in values.items()
            if step > self._last_steps.get(key, -1)
        ]
        if new:
            self._client.log_batch(self._run_id, metrics=new)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run_id, status="FINISHED" if finished else "KILLED")
