"""The four stages: each writes artifact folders and returns where they are."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aegis.data.mixture import mix, mixture_identity
from aegis.data.stage import read_pairs, read_split, source_files, write_raw, write_records
from aegis.engine.generate import complete
from aegis.engine.judge import Judge
from aegis.errors import DataError
from aegis.evaluate.decisions import evaluate_decisions, write_results
from aegis.evaluate.report import RunReport, draw_confusion
from aegis.export.certificate import CERTIFICATE_FILE
from aegis.export.fold import prepare, write_model
from aegis.model.adapter_folder import read_card
from aegis.model.base import context_length
from aegis.model.device import fast_dtype, pick_device, release_memory
from aegis.model.prompt import prompt_ids
from aegis.pipeline.context import Reached, Run, Write
from aegis.runs.reporter import bar
from aegis.storage.files import fingerprint, hash_file, require_space, write_text
from aegis.storage.journal import Journal
from aegis.train.stage import (
    TrainingData,
    TrainingJob,
    write_policy,
    write_reward,
    write_supervised,
)

_MIB = 1 << 20
_FIGURES = ("learning_curve.png", "alpha.png", "phase_transition.png", "ppo.png")


def deep_research_data(run: Run, write: Write) -> dict[str, str]:
    data = run.config.data
    settings = data.model_dump(mode="json", exclude={"quality", "split"})
    inputs = [hash_file(path) for path in source_files(data)]

    def make(staging: Path, mark: str) -> None:
        found = write_raw(staging, data, _Generator(run, run.journal("deep_research_data", mark)))
        run.say(
            f"{found['records']} records and {found['pairs']} pairs collected, {found['generated']} records generated"
        )

    write("raw", make, settings, inputs, run.base.fingerprint, run.config.seed)
    shutil.rmtree(run.unfinished("deep_research_data"), ignore_errors=True)
    return {"raw": "raw"}


class _Generator:
    """The base as a writer of samples; loaded when first asked for something that the journal does
    not hold."""

    def __init__(self, run: Run, journal: Journal) -> None:
        self.run, self.journal = run, journal
        self.model: Any = None
        self.tokenizer: Any = None

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        size = self.run.config.data.generate.batch_size
        answers: list[str] = []
        with bar("generating", len(prompts)) as advance:
            for start in range(0, len(prompts), size):
                batch = prompts[start : start + size]
                answers += self.journal(
                    fingerprint("generated", *batch), functools.partial(self._complete, batch)
                )
                advance(len(batch))
        return answers

    def _complete(self, prompts: Sequence[str]) -> list[str]:
        """One batch; its seed comes from its prompts, so that it does not matter which batches came
        before."""
        config, base = self.run.config, self.run.base
        settings = config.data.generate
        if self.model is None:
            self.run.say(f"asking {base.spec} to write samples")
            model: Any = base.load_model(dtype=fast_dtype())
            self.model = model.to(pick_device())
            self.tokenizer = base.load_tokenizer()
        return complete(
            self.model,
            self.tokenizer,
            prompts,
            settings,
            seed=int(fingerprint(config.seed, *prompts)[:15], 16),
        )


def data_cleansing(run: Run, write: Write) -> dict[str, str]:
    config, base, system = run.config, run.base, run.config.model.system_prompt

    def make(staging: Path, mark: str) -> None:
        tokenizer = base.load_tokenizer()
        limit = context_length(base.read_config())

        def too_long(prompt: str) -> str | None:
            count = len(prompt_ids(tokenizer, prompt, system=system))
            return (
                f"prompt longer than the model reads: {count} tokens of {limit}"
                if count > limit
                else None
            )

        journal = run.journal("data_cleansing", mark)
        raw = run.artifact("raw")
        sizes = write_records(
            staging, raw, config.data, seed=config.seed, too_long=too_long, remember=journal
        )
        run.say("records: " + ", ".join(f"{name} {count}" for name, count in sizes.items()))

    settings = config.data.model_dump(mode="json", include={"quality", "split"})
    write("records", make, settings, config.seed, system, base.fingerprint, run.content("raw"))
    shutil.rmtree(run.unfinished("data_cleansing"), ignore_errors=True)
    return {"records": "records"}


def so8t_ppo_training(run: Run, write: Write) -> dict[str, str]:
    """SFT, then (but for DPO) the reward model, then `train.algorithm`; with `sft` the first makes
    the adapter.

    Raises:
        DataError: if DPO is asked for and there are no pairs; nothing is trained then.
    """
    config = run.config
    if config.train.algorithm == "dpo" and not read_pairs(run.artifact("records"), "train"):
        raise DataError(
            "train.algorithm dpo needs pairs, and there are none; give some under data.pairs"
        )
    if config.train.algorithm == "sft":
        _step(run, "sft", lambda: _supervise(run, write, "adapter"))
        return {"adapter": "adapter"}
    _step(run, "sft", lambda: _supervise(run, write, "sft"))
    if config.train.algorithm != "dpo":
        _step(run, "reward", lambda: _learn_reward(run, write))
    _step(run, config.train.algorithm, lambda: _train_policy(run, write))
    return {name: name for name in ("sft", "reward", "adapter") if run.artifact(name).is_dir()}


def _step(run: Run, name: str, work: Callable[[], dict[str, Any]]) -> None:
    """One step of the stage, for `aegis status`."""
    steps = run.session.stage_record("so8t_ppo_training").steps
    steps[name] = {"state": "running", "metrics": steps.get(name, {}).get("metrics", {})}
    run.session.save()
    steps[name] = {"state": "completed", "metrics": work()}
    run.session.save()
    release_memory()
    if name == run.until and name in ("sft", "reward") and run.config.train.algorithm != name:
        raise Reached


def _supervise(run: Run, write: Write, name: str) -> dict[str, Any]:
    config, records = run.config, run.artifact("records")

    def make(staging: Path, mark: str) -> None:
        require_space(staging, 256 * _MIB)
        train, validation = read_split(records, "train"), read_split(records, "validation")
        pairs, mixture = read_pairs(records, "train"), None
        if config.train.datasets:
            held_out = [*validation, *read_split(records, "test")]
            mixture = mix(config, train=train, pairs=pairs, held_out=held_out, say=run.say)
        data = TrainingData(train, validation, pairs)
        origin = {
            "session_id": run.session.session_id,
            "records_sha256": run.content("records"),
        }
        with run.services("sft", mark) as services:
            job = TrainingJob(staging, config, run.base, services)
            write_supervised(job, data, origin=origin, mixture=mixture)

    settings = config.model_dump(mode="json", include={"model", "seed"})
    train = config.train.model_dump(
        mode="json", exclude={"algorithm", "reward", "ppo", "dpo", "group", "datasets"}
    )
    inputs = [run.base.fingerprint, run.content("records"), *mixture_identity(config)]
    write(name, make, settings, train, *inputs)
    checks = read_card(run.artifact(name)).training["validation"][-1:]
    for found in checks:
        run.say(
            f"SFT on validation: accuracy {found['validation_accuracy']:.3f}, loss {found['validation_loss']:.3f}"
        )
    return checks[0] if checks else {}


def _learn_reward(run: Run, write: Write) -> dict[str, Any]:
    config, records = run.config, run.artifact("records")
    if not read_pairs(records, "train"):
        run.say("no pairs, so no reward model: PPO is rewarded by what can be verified alone")
        return {}

    def make(staging: Path, mark: str) -> None:
        data = TrainingData(
            train=(),
            validation=(),
            pairs=read_pairs(records, "train"),
            held_out=[*read_pairs(records, "validation"), *read_pairs(records, "test")],
        )
        with run.services("reward", mark) as services:
            job = TrainingJob(staging, config, run.base, services)
            write_reward(job, data, supervised=run.artifact("sft"))

    write(
        "reward", make, config.train.reward.model_dump(mode="json"), config.seed, run.content("sft")
    )
    return json.loads((run.artifact("reward") / "reward.json").read_text(encoding="utf-8"))[
        "metrics"
    ]


def _train_policy(run: Run, write: Write) -> dict[str, Any]:
    """Go on from SFT by PPO, DPO, GRPO or RLOO."""
    config, records, algorithm = run.config, run.artifact("records"), run.config.train.algorithm
    judged = algorithm != "dpo" and bool(read_pairs(records, "train"))

    def make(staging: Path, mark: str) -> None:
        data = TrainingData(
            read_split(records, "train"),
            read_split(records, "validation"),
            read_pairs(records, "train"),
        )
        with run.services(algorithm, mark) as services:
            job = TrainingJob(staging, config, run.base, services)
            reward = run.artifact("reward") if judged else None
            write_policy(job, data, supervised=run.artifact("sft"), reward=reward)

    names = {"grpo": "group", "rloo": "group"}
    settings = getattr(config.train, names.get(algorithm, algorithm)).model_dump(mode="json")
    parts = [settings, config.seed, run.content("sft")]
    if algorithm != "ppo":
        parts.insert(0, algorithm)
    if algorithm != "dpo":
        parts.append(run.content("reward") if judged else None)
    write("adapter", make, *parts)
    return read_card(run.artifact("adapter")).training[algorithm]["metrics"]


def aegis_v2_integration(run: Run, write: Write) -> dict[str, str]:
    config, base = run.config, run.base.fingerprint
    export, judging = config.export.model_dump(mode="json"), config.evaluate.model_dump(mode="json")
    write("model", lambda staging, _: _fold(run, staging), export, base, run.content("adapter"))
    write(
        "results",
        lambda staging, _: _evaluate(run, staging),
        judging,
        base,
        run.content("model"),
        run.content("records"),
    )
    for name in ("report.html", "report.md"):
        text = (run.artifact("results") / name).read_text(encoding="utf-8")
        if (
            not run.artifact(name).is_file()
            or run.artifact(name).read_text(encoding="utf-8") != text
        ):
            write_text(run.artifact(name), text)
    return {
        "model": "model",
        "results": "results",
        "report": "report.html",
        "report_markdown": "report.md",
    }


def _fold(run: Run, staging: Path) -> None:
    run.say("folding LoRA and gates into the weights")
    certificate = write_model(
        prepare(run.artifact("adapter"), base_spec=run.config.base), staging, run.config.export
    )
    run.say(
        f"certificate: max |Δlogit| {certificate.max_abs_logit_difference:.2e}, KL {certificate.kl:.2e}, "
        f"top-1 agreement {certificate.top1_agreement:.4f}"
    )


def _evaluate(run: Run, staging: Path) -> None:
    test = read_split(run.artifact("records"), "test")
    confidence, results = run.config.evaluate.confidence, {}
    for name, folder in (("base", run.base.folder), ("candidate", run.artifact("model"))):
        run.say(f"judging {len(test)} held-out records with the {name}")
        results[name] = evaluate_decisions(
            _judge(run, folder), test, confidence=confidence, label=f"judging: {name}"
        )
        (staging / name).mkdir()
        write_results(staging / name, results[name])
        draw_confusion(staging / name / "confusion.png", results[name], title=name)
        release_memory()
    adapter = run.artifact("adapter")
    report = RunReport(
        session_id=run.session.session_id,
        base_spec=run.base.spec,
        base=results["base"],
        candidate=results["candidate"],
        certificate=json.loads(
            (run.artifact("model") / CERTIFICATE_FILE).read_text(encoding="utf-8")
        ),
        statistics=json.loads(
            (run.artifact("records") / "statistics.json").read_text(encoding="utf-8")
        ),
        decision_figures=[staging / name / "confusion.png" for name in results],
        training_figures=[path for name in _FIGURES if (path := adapter / name).is_file()],
    )
    (staging / "report.html").write_text(report.html(), encoding="utf-8")
    (staging / "report.md").write_text(report.markdown(), encoding="utf-8")


def _judge(run: Run, folder: Path) -> Judge:
    trusted = run.config.model.trust_remote_code
    return Judge.load(
        folder, batch_tokens=run.config.evaluate.batch_tokens, trust_remote_code=trusted
    )
