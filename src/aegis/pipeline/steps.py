"""The steps of the main job: what each reads, and how it writes its artifact."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from aegis.config import Config
from aegis.data.mixture import mix, mixture_identity
from aegis.data.sources.generate.calls import Calls
from aegis.data.sources.generate.ledger import Ledger
from aegis.data.sources.generate.local import LocalBackend
from aegis.data.stage import read_pairs, read_split, source_files, write_raw, write_records
from aegis.engine.generate import BaseSampler
from aegis.errors import DataError
from aegis.export.fold import prepare, write_model
from aegis.model.adapter_folder import read_card
from aegis.model.base import context_length
from aegis.model.prompt import PromptEncoder
from aegis.pipeline.calibration import apply_calibration, write_calibration
from aegis.pipeline.context import StepContext, base_content
from aegis.pipeline.evaluation import ANSWERS, BENCHMARKS, RESULTS
from aegis.pipeline.step import Stage, Step
from aegis.runs.events import Reporter
from aegis.runs.trackers import open_trackers
from aegis.storage.files import hash_file, require_space
from aegis.train.services import TrainServices
from aegis.train.snapshot_policy import SnapshotPolicy
from aegis.train.stage import (
    TrainingData,
    TrainingJob,
    write_answers,
    write_policy,
    write_reward,
    write_supervised,
)
from aegis.train.state import random_state_kept
from aegis.train.teacher import read_answers

_MIB = 1 << 20
# Everything under `train` but what another step is for, and the datasets, which are an input.
_SFT_SETTINGS = (
    *("epochs", "batch_tokens", "max_length", "thinking_records", "thinking_tokens"),
    *("probe_records", "refit_records", "lexical_strength", "lr", "gate_lr", "head_lr", "tag_lr"),
    *("weight_decay", "warmup", "clip_norm", "autocast", "anneal", "loss", "distillation"),
    *("decision_records", "decision_tokens", "refit_tokens", "checks", "check_records"),
    "gradient_accumulation",
)
_POLICY_SETTINGS = {"ppo": "ppo", "dpo": "dpo", "grpo": "group", "rloo": "group"}


def stages(config: Config) -> tuple[Stage, ...]:
    """Return the four stages of `aegis run` for these settings."""
    return (
        Stage("deep_research_data", (_RAW,)),
        Stage("data_cleansing", (_RECORDS,)),
        Stage("so8t_ppo_training", training_steps(config), check=_check_pairs),
        Stage(
            "aegis_v2_integration",
            (_MODEL, _CALIBRATION, ANSWERS, BENCHMARKS, RESULTS),
            published={"report": "results/report.html", "report_markdown": "results/report.md"},
        ),
    )


def training_steps(config: Config) -> tuple[Step, ...]:
    """Return SFT and what `train.algorithm` adds to it; the last one makes the adapter."""
    algorithm, taught = config.train.algorithm, bool(config.train.distillation.prompts)
    teacher = (_TEACHER,) if taught else ()
    sft = Step(
        "sft",
        8,
        (base_content, "records", _datasets_content, *(("teacher",) if taught else ())),
        ("model", "seed", *(f"train.{name}" for name in _SFT_SETTINGS)),
        _train_sft,
        artifact="adapter" if algorithm == "sft" else "sft",
        metrics=_sft_metrics,
        summary="SFT on validation: accuracy {validation_accuracy:.3f}, loss {validation_loss:.3f}",
    )
    if algorithm == "sft":
        return (*teacher, sft)
    limits = ("clip_norm", "max_length", "autocast", "batch_tokens")
    shared = ("model", "seed", *(f"train.{name}" for name in limits))
    reward = Step(
        "reward",
        3,
        ("sft", "records"),
        ("train.reward", *shared),
        _train_reward,
        skip=_without_pairs,
        metrics=_reward_metrics,
    )
    policy = Step(
        algorithm,
        11,
        ("sft", "records") if algorithm == "dpo" else ("sft", "records", "reward"),
        (f"train.{_POLICY_SETTINGS[algorithm]}", *shared),
        _train_policy,
        artifact="adapter",
        metrics=lambda folder: read_card(folder).training[algorithm]["metrics"],
    )
    return (*teacher, sft, policy) if algorithm == "dpo" else (*teacher, sft, reward, policy)


def _sources_content(context: StepContext) -> list[str]:
    return [hash_file(path) for path in source_files(context.config.data)]


def _datasets_content(context: StepContext) -> list[Any]:
    return mixture_identity(context.config)


def _collect(context: StepContext, folder: Path) -> None:
    config, reporter = context.config, context.reporter
    sampler = BaseSampler(
        context.base, config.data.generate, config.seed, context.journal(), say=reporter.message
    )
    backend = LocalBackend(sampler, model=context.base.spec, batch=config.data.generate.batch_size)
    ledger = Ledger(context.unfinished / f"raw.{context.fingerprint[:16]}.db")
    counts = write_raw(folder, config.data, Calls(backend, ledger, check=context.interrupt.check))
    reporter.message(
        f"{counts['records']} records and {counts['pairs']} pairs collected, "
        f"{counts['generated']} records generated"
    )


def _clean(context: StepContext, folder: Path) -> None:
    config = context.config
    encoder = PromptEncoder(context.base.load_tokenizer(), config.model.system_prompt)
    limit = context_length(context.base.read_config())

    def too_long(prompt: str) -> str | None:
        count = len(encoder.ids(prompt))
        if count <= limit:
            return None
        return f"prompt longer than the model reads: {count} tokens of {limit}"

    sizes = write_records(
        folder,
        context.artifact("raw"),
        config.data,
        seed=config.seed,
        too_long=too_long,
        remember=context.journal(),
    )
    counts = ", ".join(f"{name} {count}" for name, count in sizes.items())
    context.reporter.message(f"records: {counts}")


@contextlib.contextmanager
def _training_job(context: StepContext, folder: Path) -> Iterator[TrainingJob]:
    """Yield what a training works with; its curves are closed at the end."""
    snapshots = SnapshotPolicy(
        context.snapshots(),
        interval_s=context.config.durable.interval_s,
        check=context.interrupt.check,
        on_saved=context.record_snapshot,
        say=context.reporter.message,
    )
    trackers = open_trackers(
        context.config.tracking,
        session=context.session.folder,
        training=context.step,
        fingerprint=context.fingerprint,
        say=context.reporter.message,
        guard=random_state_kept,
    )
    with trackers:
        reporter = Reporter(*context.reporter.subscribers, trackers)
        services = TrainServices(reporter, snapshots, context.journal())
        yield TrainingJob(folder, context.config, context.base, services)


def _training_data(context: StepContext) -> TrainingData:
    records = context.artifact("records")
    return TrainingData(
        train=read_split(records, "train"),
        validation=read_split(records, "validation"),
        pairs=read_pairs(records, "train"),
        held_out=[*read_pairs(records, "validation"), *read_pairs(records, "test")],
    )


def _check_pairs(context: StepContext) -> None:
    if context.config.train.algorithm == "dpo" and _without_pairs(context):
        raise DataError(
            "train.algorithm dpo needs pairs, and there are none; give some under data.pairs"
        )


def _without_pairs(context: StepContext) -> str | None:
    if read_pairs(context.artifact("records"), "train"):
        return None
    return "no pairs, so no reward model: PPO is rewarded by what can be verified alone"


def _teach(context: StepContext, folder: Path) -> None:
    with _training_job(context, folder) as job:
        write_answers(job, _training_data(context).train)


def _train_sft(context: StepContext, folder: Path) -> None:
    require_space(folder, 256 * _MIB)
    config, data, mixture = context.config, _training_data(context), None
    if config.train.datasets:
        held_out = [*data.validation, *read_split(context.artifact("records"), "test")]
        own, say = {"train": data.train, "pairs": data.pairs}, context.reporter.message
        mixture = mix(config, **own, held_out=held_out, say=say)
    records = context.contents["records"]
    origin = {"session_id": context.session.session_id, "records_sha256": records}
    teacher = context.artifact("teacher") if "teacher" in context.contents else None
    with _training_job(context, folder) as job:
        answers = read_answers(teacher) if teacher else []
        data = replace(data, answers=answers)
        write_supervised(job, data, origin=origin, mixture=mixture)


def _sft_metrics(folder: Path) -> dict[str, Any]:
    checks = read_card(folder).training["validation"]
    return checks[-1] if checks else {}


def _train_reward(context: StepContext, folder: Path) -> None:
    with _training_job(context, folder) as job:
        write_reward(job, _training_data(context), supervised=context.artifact("sft"))


def _reward_metrics(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "reward.json")["metrics"]


def _train_policy(context: StepContext, folder: Path) -> None:
    reward = context.artifact("reward") if "reward" in context.contents else None
    with _training_job(context, folder) as job:
        data, supervised = _training_data(context), context.artifact("sft")
        write_policy(job, data, supervised=supervised, reward=reward)


def _fold(context: StepContext, folder: Path) -> None:
    context.reporter.message("folding LoRA and gates into the weights")
    parts = prepare(context.artifact("adapter"), base_spec=context.config.base)
    certificate = write_model(parts, folder, context.config.export)
    context.reporter.message(
        f"certificate: max |Δlogit| {certificate.max_abs_logit_difference:.2e}, "
        f"KL {certificate.kl:.2e}, top-1 agreement {certificate.top1_agreement:.4f}"
    )


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


_RAW_SETTINGS = tuple(
    f"data.{name}"
    for name in ("seed_records", "registers", "records", "pairs", "skip_bad", "generate")
)
_RAW = Step("raw", 3, (_sources_content, base_content), (*_RAW_SETTINGS, "seed"), _collect)
_RECORDS_SETTINGS = ("data.quality", "data.split", "model.system_prompt", "seed")
_RECORDS = Step("records", 4, (base_content, "raw"), _RECORDS_SETTINGS, _clean)
_TEACHER = Step("teacher", 3, (base_content, "records"), ("train.distillation", "seed"), _teach)
_MODEL = Step("model", 5, (base_content, "adapter"), ("export",), _fold)
_CALIBRATION = Step(
    "calibration",
    1,
    (base_content, "model", "records"),
    tuple(f"evaluate.{name}" for name in ("max_miss_rate", "confidence", "batch_tokens")),
    write_calibration,
    settle=apply_calibration,
)
