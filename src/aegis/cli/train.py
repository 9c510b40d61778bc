"""aegis train: one step of training."""

from __future__ import annotations

import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis.cli.notify import Notify
from aegis.cli.options import (
    AcceptLicence,
    AsJson,
    AutoResume,
    ConfigFile,
    Overrides,
    load_settings,
    repeatable,
)
from aegis.cli.show import echo, main_metrics, print_json, print_table, progress_reporter
from aegis.errors import BadInputError

if TYPE_CHECKING:
    from aegis.config import Config

_STEP = "How far to train; what comes before it is done first, or found done."
_PLAN = "Say what would be trained and whether it fits in memory; load no weights."
_DRY_RUN = "Print the plan, train one step in a folder that is thrown away, and report."
_ONE_STEP = (
    "data.generate.samples=0",
    "train.epochs=1e-9",
    "train.probe_records=64",
    "train.refit_records=64",
    "train.reward.epochs=1e-9",
    "train.reward.pairs=16",
    "train.ppo.updates=1",
    "train.dpo.epochs=1e-9",
    "train.group.updates=1",
)
TrainingStep = StrEnum("TrainingStep", ["sft", "reward", "ppo", "dpo", "grpo", "rloo"])


def train(
    step: Annotated[TrainingStep, typer.Argument(help=_STEP)],
    config: ConfigFile,
    set_: Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help=_PLAN)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=_DRY_RUN)] = False,
    auto_resume: AutoResume = True,
    accept_licence: AcceptLicence = None,
    notify: Notify = None,
    json: AsJson = False,
) -> None:
    """Train as far as one step: sft, reward, or one of ppo, dpo, grpo, rloo.

    Works in the same session as `aegis run CONFIG`: data is prepared first if it is not yet,
    finished steps are skipped, and `aegis run` goes on from here. A step other than the config's
    own `train.algorithm` gets a session of its own.
    """
    overrides = list(set_ or [])
    if step not in (TrainingStep.sft, TrainingStep.reward):
        overrides.append(f"train.algorithm={step}")
    settings = load_settings(config, overrides)
    if step is TrainingStep.reward and settings.train.algorithm in ("sft", "dpo"):
        raise BadInputError(
            f"train.algorithm is {settings.train.algorithm}, which uses no reward model; "
            "set it to ppo, grpo or rloo"
        )
    if plan and dry_run:
        raise BadInputError("give either --plan or --dry-run, and not both")
    if plan or dry_run:
        _plan(settings, config, json=json, quiet=json and dry_run)
    if dry_run:
        _dry_run(step, config, overrides)
    elif not plan:
        command = repeatable(["train", str(step), str(config)], set_ or [])
        _train(step, settings, command, resume=auto_resume, json=json)
        if not json:
            changed = "".join(f" --set '{override}'" for override in overrides)
            echo(f"go on with: aegis run {config}{changed}")


def _plan(settings: Config, config: Path, *, json: bool, quiet: bool) -> None:
    from aegis.model.base import resolve_base
    from aegis.train.memory.plan import plan

    base = resolve_base(settings.base, trust_remote_code=settings.model.trust_remote_code)
    estimate = plan(settings, base)
    if json and not quiet:
        print_json(estimate.to_json())
    elif not json:
        print_table(("part", "memory"), estimate.rows(), title=f"{config}: training plan")
        for line in estimate.advice():
            echo(line)


def _dry_run(step: TrainingStep, config: Path, overrides: list[str]) -> None:
    from aegis.config import load_config
    from aegis.pipeline import run_pipeline

    with tempfile.TemporaryDirectory(prefix="aegis-dry-run-") as folder:
        small = load_config(config, [*overrides, *_ONE_STEP, f"runs={folder}"])
        begun = time.monotonic()
        session = run_pipeline(small, resume=False, reporter=progress_reporter(), until=step)
        seconds = round(time.monotonic() - begun, 1)
        metrics = session.stage_record("so8t_ppo_training").steps[step]["metrics"]
    peak = _peak_gib()
    print_json({"step": str(step), "seconds": seconds, "peak_memory_gib": peak, "metrics": metrics})


def _train(
    step: TrainingStep, settings: Config, command: dict[str, Any], *, resume: bool, json: bool
) -> None:
    from aegis.pipeline import run_pipeline

    reporter = progress_reporter()
    session = run_pipeline(settings, resume=resume, reporter=reporter, command=command, until=step)
    steps = session.stage_record("so8t_ppo_training").steps
    if json:
        session_id, folder = session.session_id, str(session.folder)
        print_json({"session_id": session_id, "folder": folder, "steps": steps})
        return
    rows = [(name, row["state"], main_metrics(row["metrics"])) for name, row in steps.items()]
    print_table(("step", "state", "metrics"), rows, title=session.session_id)


def _peak_gib() -> float:
    """Return the peak memory of this process: of the GPU if there is one, else resident."""
    import sys

    import psutil
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    if sys.platform == "win32":
        return round(psutil.Process().memory_info().peak_wset / 2**30, 2)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**30 if sys.platform == "darwin" else 2**20), 2)
