"""aegis train: one step of training."""

from __future__ import annotations

import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Step(StrEnum):
    sft = "sft"
    reward = "reward"
    ppo = "ppo"
    dpo = "dpo"
    grpo = "grpo"
    rloo = "rloo"


def train(
    step: Annotated[
        Step,
        typer.Argument(help="How far to train; what comes before it is done first, or found done."),
    ],
    config: Annotated[
        Path, typer.Argument(help="YAML file with the settings, e.g. examples/quickstart.yaml.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="A.B=C", help="Override a setting, e.g. --set train.lr=1e-4."
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Say what would be trained and whether it fits in memory; load no weights.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the plan, train one step in a folder that is thrown away, and report.",
        ),
    ] = False,
    auto_resume: Annotated[
        bool,
        typer.Option(
            help="Go on with the newest session of this config; --no-auto-resume starts anew."
        ),
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train as far as one step: sft, reward, or one of ppo, dpo, grpo, rloo.

    Works in the same session as `aegis run CONFIG`: data is prepared first if it is not yet,
    finished steps are skipped, and `aegis run` goes on from here. A step other than the config's
    own `train.algorithm` gets a session of its own.
    """
    from aegis.cli.show import print_json, print_table, tell
    from aegis.config import load_config
    from aegis.errors import BadInputError

    overrides = list(set_ or [])
    if step not in (Step.sft, Step.reward):
        overrides.append(f"train.algorithm={step}")
    settings = load_config(config, overrides)
    if step is Step.reward and settings.train.algorithm in ("sft", "dpo"):
        raise BadInputError(
            f"train.algorithm is {settings.train.algorithm}, which uses no reward model; set it to ppo, grpo or rloo"
        )
    if plan and dry_run:
        raise BadInputError("give either --plan or --dry-run, and not both")
    if plan or dry_run:
        from aegis.model.base import resolve_base
        from aegis.train.memory.plan import plan as estimate

        base = resolve_base(settings.base, trust_remote_code=settings.model.trust_remote_code)
        found = estimate(settings, base)
        if json and plan:
            print_json(found.to_json())
        elif not json:
            print_table(("part", "memory"), found.rows(), title=f"{config}: training plan")
            for line in found.advice():
                typer.echo(line)
        if plan:
            return

    from aegis.pipeline import run_pipeline

    if dry_run:
        with tempfile.TemporaryDirectory(prefix="aegis-dry-run-") as folder:
            small = load_config(config, [*overrides, *_ONE_STEP, f"runs={folder}"])
            begun = time.monotonic()
            session = run_pipeline(small, resume=False, say=tell, until=step)
            report = {
                "step": str(step),
                "seconds": round(time.monotonic() - begun, 1),
                "peak_memory_gib": _peak_gib(),
            }
            report |= {"metrics": session.stage_record("so8t_ppo_training").steps[step]["metrics"]}
        print_json(report)
        return
    argv = ["train", str(step), str(config)]
    for override in set_ or []:
        argv += ["--set", override]
    session = run_pipeline(
        settings,
        resume=auto_resume,
        say=tell,
        command={"argv": argv, "cwd": str(Path.cwd())},
        until=step,
    )
    record = session.stage_record("so8t_ppo_training")
    if json:
        print_json(
            {"session_id": session.session_id, "folder": str(session.folder), "steps": record.steps}
        )
        return
    rows = []
    for name, found in record.steps.items():
        known = [(key, value) for key, value in found["metrics"].items() if value is not None]
        rows.append((name, found["state"], "  ".join(f"{key} {value:.4g}" for key, value in known)))
    print_table(("step", "state", "metrics"), rows, title=session.session_id)
    changed = "".join(f" --set '{override}'" for override in overrides)
    typer.echo(f"go on with: aegis run {config}{changed}")


_ONE_STEP = (
    "data.generate.samples=0",
    "train.epochs=1e-9",
    "train.probe_records=64",
    "train.reward.epochs=1e-9",
    "train.reward.pairs=16",
    "train.ppo.updates=1",
    "train.dpo.epochs=1e-9",
    "train.group.updates=1",
)


def _peak_gib() -> float:
    """Peak memory of this process so far: of the GPU if there is one, else resident."""
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
