"""The steps of the main job: what each reads, and how it writes its artifact."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aegis.config import Config
from aegis.data.mixture import mix, mixture_identity
from aegis.data.stage import read_pairs, read_split, source_files, write_raw, write_records
from aegis.engine.generate import complete
from aegis.engine.judge import Judge
from aegis.errors import DataError
from aegis.evaluate.decisions import evaluate_decisions, write_results
from aegis.evaluate.report import draw_confusion, render
from aegis.export.certificate import CERTIFICATE_FILE
from aegis.export.fold import prepare, write_model
from aegis.model.adapter_folder import read_card
from aegis.model.base import context_length
from aegis.model.device import fast_dtype, pick_device, release_memory
from aegis.model.prompt import prompt_ids
from aegis.pipeline.context import StepContext
from aegis.pipeline.step import Stage, Step
from aegis.runs.events import Reporter
from aegis.runs.reporter import bar
from aegis.runs.trackers import open_trackers
from aegis.storage.files import fingerprint, hash_file, require_space
from aegis.train.services import TrainServices
from aegis.train.snapshot_policy import SnapshotPolicy
from aegis.train.stage import (
    TrainingData,
    TrainingJob,
    write_policy,
    write_reward,
    write_supervised,
)

_MIB = 1 << 20
_FIGURES = ("learning_curve.png", "alpha.png", "phase_transition.png", "ppo.png")
# Everything under `train` but what another step is for, and the datasets, which are an input.
_SFT_SETTINGS = (
    *("epochs", "batch_tokens", "max_length", "thinking_records", "thinking_tokens"),
    *("probe_records", "lexical_strength", "lr", "gate_lr", "head_lr", "tag_lr"),
    *("weight_decay", "warmup", "clip_norm", "autocast", "anneal", "loss"),
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
            (_MODEL, _RESULTS),
            published={"report": "results/report.html", "report_markdown": "results/report.md"},
        ),
    )


def training_steps(config: Config) -> tuple[Step, ...]:
    """Return SFT and what `train.algorithm` adds to it; the last one makes the adapter."""
    algorithm = config.train.algorithm
    sft = Step(
        name="sft",
        version=4,
        inputs=(_base_content, "records", _datasets_content),
        settings=("model", "seed", *(f"train.{name}" for name in _SFT_SETTINGS)),
        run=_train_sft,
        artifact="adapter" if algorithm == "sft" else "sft",
        metrics=_sft_metrics,
        summary="SFT on validation: accuracy {validation_accuracy:.3f}, loss {validation_loss:.3f}",
    )
    if algorithm == "sft":
        return (sft,)
    shared = ("model", "seed", "train.clip_norm", "train.max_length")
    reward = Step(
        name="reward",
        version=3,
        inputs=("sft", "records"),
        settings=("train.reward", *shared),
        run=_train_reward,
        skip=_without_pairs,
        metrics=_reward_metrics,
    )
    policy = Step(
        name=algorithm,
        version=9,
        inputs=("sft", "records") if algorithm == "dpo" else ("sft", "records", "reward"),
        settings=(f"train.{_POLICY_SETTINGS[algorithm]}", *shared),
        run=_train_policy,
        artifact="adapter",
        metrics=lambda folder: read_card(folder).training[algorithm]["metrics"],
    )
    return (sft, policy) if algorithm == "dpo" else (sft, reward, policy)


def _base_content(context: StepContext) -> str:
    return context.base.fingerprint


def _sources_content(context: StepContext) -> list[str]:
    return [hash_file(path) for path in source_files(context.config.data)]


def _datasets_content(context: StepContext) -> list[Any]:
    return mixture_identity(context.config)


def _collect(context: StepContext, folder: Path) -> None:
    counts = write_raw(folder, context.config.data, _SampleWriter(context))
    context.reporter.message(
        f"{counts['records']} records and {counts['pairs']} pairs collected, "
        f"{counts['generated']} records generated"
    )


class _SampleWriter:
    """The base as a writer of samples; loaded for the first that the journal does not hold."""

    def __init__(self, context: StepContext) -> None:
        self.context, self.journal = context, context.journal()
        self.model: Any = None
        self.tokenizer: Any = None

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        size = self.context.config.data.generate.batch_size
        answers: list[str] = []
        with bar("generating", len(prompts)) as advance:
            for start in range(0, len(prompts), size):
                batch = prompts[start : start + size]
                key = fingerprint("generated", *batch)
                answers += self.journal(key, functools.partial(self._complete, batch))
                advance(len(batch))
        return answers

    def _complete(self, prompts: Sequence[str]) -> list[str]:
        """Complete a batch; its seed comes from its prompts, whatever batches came before."""
        context, settings = self.context, self.context.config.data.generate
        if self.model is None:
            context.reporter.message(f"asking {context.base.spec} to write samples")
            model: Any = context.base.load_model(dtype=fast_dtype())
            self.model = model.to(pick_device())
            self.tokenizer = context.base.load_tokenizer()
        return complete(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=int(fingerprint(context.config.seed, *prompts)[:15], 16),
        )


def _clean(context: StepContext, folder: Path) -> None:
    config = context.config
    tokenizer, limit = context.base.load_tokenizer(), context_length(context.base.read_config())

    def too_long(prompt: str) -> str | None:
        count = len(prompt_ids(tokenizer, prompt, system=config.model.system_prompt))
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
    context.reporter.message(
        "records: " + ", ".join(f"{name} {count}" for name, count in sizes.items())
    )


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
    )
    with trackers:
        reporter = Reporter(*context.reporter.subscribers, trackers)
        yield TrainingJob(folder, context.config, context.base, TrainServices(reporter, snapshots))


def _training_data(context: StepContext) -> TrainingData:
    records = context.artifact("records")
    return TrainingData(
        train=read_split(records, "train"),
        validation=read_split(records, "validation"),
        pairs=read_pairs(records, "train"),
        held_out=[*read_pairs(records, "validation"), *read_pairs(records, "test")],
    )


def _check_pairs(context: StepContext) -> None:
    pairs = read_pairs(context.artifact("records"), "train")
    if context.config.train.algorithm == "dpo" and not pairs:
        raise DataError(
            "train.algorithm dpo needs pairs, and there are none; give some under data.pairs"
        )


def _without_pairs(context: StepContext) -> str | None:
    if read_pairs(context.artifact("records"), "train"):
        return None
    return "no pairs, so no reward model: PPO is rewarded by what can be verified alone"


def _train_sft(context: StepContext, folder: Path) -> None:
    require_space(folder, 256 * _MIB)
    config, reporter, data, mixture = (
        context.config,
        context.reporter,
        _training_data(context),
        None,
    )
    if config.train.datasets:
        held_out = [*data.validation, *read_split(context.artifact("records"), "test")]
        mixture = mix(
            config, train=data.train, pairs=data.pairs, held_out=held_out, say=reporter.message
        )
    origin = {
        "session_id": context.session.session_id,
        "records_sha256": context.contents["records"],
    }
    with _training_job(context, folder) as job:
        write_supervised(job, data, origin=origin, mixture=mixture)


def _sft_metrics(folder: Path) -> dict[str, Any]:
    checks = read_card(folder).training["validation"]
    return checks[-1] if checks else {}


def _train_reward(context: StepContext, folder: Path) -> None:
    with _training_job(context, folder) as job:
        write_reward(job, _training_data(context), supervised=context.artifact("sft"))


def _reward_metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "reward.json").read_text(encoding="utf-8"))["metrics"]


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


def _evaluate(context: StepContext, folder: Path) -> None:
    settings, trusted = context.config.evaluate, context.config.model.trust_remote_code
    test, results = read_split(context.artifact("records"), "test"), {}
    models = {"base": context.base.folder, "candidate": context.artifact("model")}
    for name, model in models.items():
        context.reporter.message(f"judging {len(test)} held-out records with the {name}")
        judge = Judge.load(model, batch_tokens=settings.batch_tokens, trust_remote_code=trusted)
        results[name] = evaluate_decisions(
            judge, test, confidence=settings.confidence, label=f"judging: {name}"
        )
        del judge
        (folder / name).mkdir()
        write_results(folder / name, results[name])
        draw_confusion(folder / name / "confusion.png", results[name], title=name)
        release_memory()
    adapter = context.artifact("adapter")
    html, markdown = render(
        session_id=context.session.session_id,
        base_spec=context.base.spec,
        base=results["base"],
        candidate=results["candidate"],
        certificate=_read_json(context.artifact("model") / CERTIFICATE_FILE),
        statistics=_read_json(context.artifact("records") / "statistics.json"),
        decision_figures=[folder / name / "confusion.png" for name in results],
        training_figures=[path for name in _FIGURES if (path := adapter / name).is_file()],
    )
    (folder / "report.html").write_text(html, encoding="utf-8")
    (folder / "report.md").write_text(markdown, encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


_RAW = Step(
    name="raw",
    version=2,
    inputs=(_sources_content, _base_content),
    settings=(
        "data.seed_records",
        "data.records",
        "data.pairs",
        "data.skip_bad",
        "data.generate",
        "seed",
    ),
    run=_collect,
)
_RECORDS = Step(
    name="records",
    version=2,
    inputs=(_base_content, "raw"),
    settings=("data.quality", "data.split", "model.system_prompt", "seed"),
    run=_clean,
)
_MODEL = Step(
    name="model",
    version=5,
    inputs=(_base_content, "adapter"),
    settings=("export",),
    run=_fold,
)
_RESULTS = Step(
    name="results",
    version=3,
    inputs=(_base_content, "model", "records"),
    settings=("evaluate",),
    run=_evaluate,
)
