"""Scalars of every step of training, for TensorBoard always, for MLflow and trackio where the user
asks for them.

A tracker looks on. One that fails is told once and left out; the training goes on, and draws the
same random numbers as without it. It holds no state that a snapshot would need: what a tracker
lacks after a kill or a power cut is written again from the training's own log, and what it has too
much (steps after the snapshot that was resumed from) is superseded.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from aegis.errors import MissingPackageError
from aegis.storage.files import fingerprint, sync_file
from aegis.train.state import RandomState

Scalars = Mapping[str, float]
TENSORBOARD = "tensorboard"
_PROJECT = "aegis"
_FLUSH_S = 20
# Set unless the user has set them: no telemetry, and a server that is gone is given up on after seconds, not minutes.
_MLFLOW_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def require_trackers(names: Iterable[str]) -> None:
    """Every tracker that is asked for is installed.

    Raises:
        MissingPackageError: if one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(f"tracking: {name} is not installed; run: pip install {name}")


class Sink(Protocol):
    """Where scalars go."""

    def begin(self, done: int) -> int:
        """Get ready to go on after `done` steps; return the first step that is still wanted, 0 for
        all."""
        ...

    def write(self, step: int, scalars: Scalars) -> None: ...
    def close(self, *, finished: bool) -> None: ...


class Tracker:
    """The scalars of one step of training, to every sink that works; no sinks, no effect.

    Args:
        sinks: by name, opened by `begin`.
        say: told once of each sink that fails.
    """

    def __init__(
        self,
        sinks: Mapping[str, Callable[[], Sink]] | None = None,
        *,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._makers, self._sinks, self._say = dict(sinks or {}), dict[str, Sink](), say

    def begin(self, done: int, history: Iterable[tuple[int, Scalars]] = ()) -> None:
        """Go on after `done` steps (0 for a new training).

        Args:
            history: (step, scalars) of the steps done, oldest first: what a sink lacks of it is
                written to it.
        """
        rows = sorted(history, key=lambda row: row[0])  # stable: a step's rows stay in their order
        kept = RandomState()
        state = kept.capture()

        def open_sink(name: str, make: Callable[[], Sink]) -> None:
            sink = make()
            first = sink.begin(done)
            for step, scalars in rows:
                if step >= first:
                    sink.write(step, scalars)
            self._sinks[name] = sink

        for name, make in self._makers.items():
            self._guarded(name, lambda name=name, make=make: open_sink(name, make))
        kept.restore(state)

    def write(self, step: int, scalars: Scalars) -> None:
        """Add the scalars at this step."""
        for name, sink in list(self._sinks.items()):
            self._guarded(name, lambda sink=sink: sink.write(step, scalars))

    def close(self, *, finished: bool = True) -> None:
        """Everything is written; `finished` says whether the step of training is."""
        for name, sink in list(self._sinks.items()):
            self._guarded(name, lambda sink=sink: sink.close(finished=finished))
        self._sinks.clear()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(finished=kind is None)

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a tracker raises, the training is worth more
            self._sinks.pop(name, None)
            first = (str(error).splitlines() or [""])[0][:200]
            self._say(
                f"tracking: {name} failed ({type(error).__name__}: {first}); the training goes on without it"
            )


def open_tracker(
    names: Sequence[str],
    *,
    session: Path,
    step: str,
    mark: str,
    say: Callable[[str], None] = lambda _: None,
) -> Tracker:
    """The tracker of one step of training in a session.

    Args:
        names: the sinks asked for; TensorBoard's files are written in any case.
        session: the session's folder, in the folder of all runs.
        step: `sft`, `reward`, `ppo` …: names the TensorBoard folder and the MLflow or trackio run.
        mark: fingerprint of what the step is made of; a run of another mark is another run.
    """
    sinks: dict[str, Callable[[], Sink]] = {
        TENSORBOARD: lambda: TensorBoard(session / TENSORBOARD / step)
    }
    run = f"{session.name}/{step}/{mark[:8]}"
    if "mlflow" in names:
        sinks["mlflow"] = lambda: MLflow(run, mark=f"{session.name}:{mark}", folder=session.parent)
    if "trackio" in names:
        sinks["trackio"] = lambda: Trackio(run, mark=f"{session.name}:{mark}")
    return Tracker(sinks, say=say)


class TensorBoard:
    """Event files in one folder, read with `tensorboard --logdir`.

    A file that a kill cut short ends at some step, perhaps in its middle: from that step on
    everything is written again, and a START event with `purge_step` tells TensorBoard to forget
    what it had read from there on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def begin(self, done: int) -> int:
        from torch.utils.tensorboard import SummaryWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names, which begin with the second they were made in. After those of
        # this very second, or of a clock that has been put back since, a new one would not count: all is written again.
        now = f"events.out.tfevents.{int(time.time()):010d}"
        if any(path.name[: len(now)] >= now for path in _event_files(self.folder)):
            for path in _event_files(self.folder):
                path.unlink()
        last = last_step(self.folder)
        first = 0 if last is None else min(last, done + 1)
        purge = None if last is None else first
        self._writer = SummaryWriter(str(self.folder), purge_step=purge, flush_secs=_FLUSH_S)
        return first

    def write(self, step: int, scalars: Scalars) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, finished: bool) -> None:
        self._writer.close()
        for path in _event_files(self.folder):
            sync_file(path)


def last_step(folder: Path) -> int | None:
    """The last step that TensorBoard would show of this folder; None for none."""
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
    """A run in the experiment `aegis`; on this machine (`mlflow.db` beside the sessions) unless
    MLFLOW_TRACKING_URI is set.

    MLflow keeps every value it is sent, so a step that it has already is not sent again.
    """

    def __init__(self, name: str, *, mark: str, folder: Path) -> None:
        self.name, self.mark, self.folder = name, mark, folder.absolute()
        self._last: dict[str, int] = {}
        self._client: Any = None
        self._run = ""

    def begin(self, done: int) -> int:
        for name, value in _MLFLOW_QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        local = f"sqlite:///{(self.folder / 'mlflow.db').as_posix()}"
        self._client = client = MlflowClient(
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or local
        )
        found = client.get_experiment_by_name(_PROJECT)
        experiment = found.experiment_id if found else client.create_experiment(_PROJECT)
        runs = client.search_runs([experiment], f"tags.aegis_mark = '{self.mark}'", max_results=1)
        run = (
            runs[0]
            if runs
            else client.create_run(experiment, run_name=self.name, tags={"aegis_mark": self.mark})
        )
        self._run = run.info.run_id
        if runs:
            client.update_run(self._run, status="RUNNING")
        self._last = {
            key: max(metric.step for metric in client.get_metric_history(self._run, key))
            for key in run.data.metrics
        }
        return 0

    def write(self, step: int, scalars: Scalars) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = round(time.time() * 1000)
        new = [
            Metric(key, value, now, step)
            for key, value in scalars.items()
            if step > self._last.get(key, -1)
        ]
        if new:
            self._client.log_batch(self._run, metrics=new)

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._run, status="FINISHED" if finished else "KILLED")


class Trackio:
    """A run in the project `aegis` of trackio's store on this machine, which `trackio show
    --project aegis` shows.

    Rows go into the store itself: `trackio.init` would look the user's name up over the network. A
    row that is there already is not written again.
    """

    def __init__(self, name: str, *, mark: str) -> None:
        self.name, self.mark = name, mark
        self._store: Any = None

    def begin(self, done: int) -> int:
        from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

        self._store = SQLiteStorage
        return 0

    def write(self, step: int, scalars: Scalars) -> None:
        row = fingerprint(self.mark, step, sorted(scalars))
        run = fingerprint(self.mark)[:32]
        self._store.bulk_log(
            _PROJECT, self.name, [dict(scalars)], steps=[step], log_ids=[row], run_id=run
        )

    def close(self, *, finished: bool) -> None:
        pass
