"""The same shards on datatrove's executors: this machine, Slurm or Ray."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from aegis.config.settings import AtLeastOne, Settings
from aegis.data.clean.finish import find_repeated, judge_shard
from aegis.data.clean.run import Cleaning, at_work, finish, prepare, work_folder
from aegis.data.clean.shards import CleaningPlan, do_shard
from aegis.errors import BadInputError, ConfigError, MissingPackageError
from aegis.inputs.strict_yaml import MOST_CHARACTERS, read_yaml
from aegis.inputs.text import read_text
from aegis.storage.artifact import is_current


class ClusterSettings(Settings):
    """How the shards are spread: `examples/cluster.yaml`."""

    executor: Literal["local", "slurm", "ray"] = "local"
    """Which of datatrove's executors runs the tasks."""
    tasks: AtLeastOne = 8
    """Tasks that the shards are dealt to; more make each shorter."""
    workers: AtLeastOne = 2
    """Tasks that run at once."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What the executor takes besides: for Slurm `time` and `partition` at least."""


def read_cluster(path: Path) -> ClusterSettings:
    """Read a YAML file.

    Raises:
        ConfigError: if it cannot be read, or a key is unknown or impossible.
    """
    text = read_text(path, most=MOST_CHARACTERS, kind="YAML", error=ConfigError)
    try:
        return ClusterSettings.model_validate(read_yaml(text, str(path)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{path}: {place}: {first['msg']}; see examples/cluster.yaml") from error


def clean_on_cluster(cleaning: Cleaning, out: Path, cluster: ClusterSettings) -> bool:
    """Have `out` written by the executor; return whether it is there already.

    The work folder beside `out` must lie where all tasks can read and write it. Its logs are
    keyed by the fingerprint, so that a changed cleaning is never taken for a finished one.

    Raises:
        BadInputError: if the input, or an option of the executor, cannot be used.
    """
    with at_work(out):
        plan = prepare(cleaning, out)
    if is_current(out, plan.fingerprint):
        return True
    work = work_folder(out).resolve()
    phases: list[tuple[str, Any, int]] = [("shards", partial(_each, do_shard), cluster.tasks)]
    phases.append(("repeated", _find, 1))
    if plan.settings.check_decisions:
        phases.append(("judge", partial(_each, judge_shard), cluster.tasks))
    phases.append(("finish", partial(_finish, out=out.resolve()), 1))
    make, last = _executor(cluster), None
    for name, run, tasks in phases:
        logs = str(work / "logs" / plan.fingerprint[:16] / name)
        shared = {"tasks": tasks, "workers": min(tasks, cluster.workers), "depends": last}
        # Our shards tell what is done. Its own markers go by rank, whatever the rank had to do.
        shared |= {"logging_dir": logs, "skip_completed": False}
        try:
            last = make(pipeline=[partial(run, work)], **shared, **cluster.options)
        except TypeError as error:
            raise BadInputError(f"{cluster.executor}: options: {error}; correct them") from error
    assert last is not None
    last.run()
    return is_current(out, plan.fingerprint)


def _each(do: Any, work: Path, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
    plan = CleaningPlan.read(work)
    for number in range(rank, len(plan.shards), world_size):
        do(work, plan, number)


def _find(work: Path, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
    find_repeated(work, CleaningPlan.read(work))


def _finish(work: Path, data: Any = None, rank: int = 0, world_size: int = 1, *, out: Path) -> None:
    finish(work, CleaningPlan.read(work), out)


def _executor(cluster: ClusterSettings) -> Any:
    try:
        from datatrove import executor
    except ImportError as error:
        raise MissingPackageError(
            f"a cluster needs {error.name}; install it: pip install 'aegis-so8t[data]'"
        ) from error
    name = {"local": "Local", "slurm": "Slurm", "ray": "Ray"}[cluster.executor]
    return getattr(executor, f"{name}PipelineExecutor")
