"""The main job: four durable stages in order. Each writes artifact folders; a finished one is never computed twice."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from aegis.config import Config
from aegis.data.stage import collect, read_pairs, read_split, source_files, write_raw, write_records
from aegis.durable.artifact import adopt, is_current, read_manifest, writing
from aegis.durable.files import fingerprint, hash_file, require_space, write_text
from aegis.durable.lock import only_process
from aegis.durable.session import STAGES, Session, open_session
from aegis.errors import ConfigError
from aegis.evaluate.decisions import evaluate_decisions, write_results
from aegis.evaluate.judge import Judge
from aegis.evaluate.report import draw_confusion, render
from aegis.export.fold import CERTIFICATE, prepare, write_model
from aegis.model.adapt import check_attachable
from aegis.model.device import fast_dtype, pick_device, release_memory, set_threads
from aegis.model.generate import complete
from aegis.model.load import Base, context_length, load_model, load_tokenizer, read_config, resolve_base
from aegis.model.prompt import prompt_ids
from aegis.progress import bar
from aegis.train.stage import write_adapter

Say = Callable[[str], None]
_VERSIONS = {"raw": 2, "records": 2, "adapter": 3, "model": 3, "results": 3}
_MIB = 1 << 20


@dataclass(frozen=True)
class Run:
    """What every stage reads: settings, base, where to write, and whom to tell."""

    config: Config
    base: Base
    session: Session
    say: Say

    def artifact(self, name: str) -> Path:
        return self.session.folder / name

    def content(self, name: str) -> dict[str, str]:
        """The hashes of an artifact's files: what stands for its content in a later fingerprint."""
        return read_manifest(self.artifact(name)).files


def run_pipeline(config: Config, *, resume: bool = True, say: Say = lambda _: None) -> Session:
    """Run or resume the four stages and return the completed session.

    Args:
        resume: go on with the newest session of this config; False starts anew and takes nothing over.
        say: gets one line for each thing worth telling.

    Raises:
        AegisError: what went wrong, with its remedy. The session is then marked failed; finished stages stay.
    """
    set_threads(config.threads)
    base = _preflight(config)
    identity = fingerprint(config.model_dump(mode="json"))
    session = open_session(Path(config.runs), config_fingerprint=identity, resume=resume)
    with only_process(session.folder):
        run = Run(config, base, session, say)
        say(f"session {session.session_id}, base {base.spec} ({base.model_type}, width {base.hidden_size})")
        steps = (_deep_research_data, _data_cleansing, _so8t_ppo_training, _aegis_v2_integration)
        for name, step in zip(STAGES, steps, strict=True):
            _stage(run, name, step, adopting=resume)
        session.stage = "completed"
        session.save()
    return session


def _preflight(config: Config) -> Base:
    """Check everything that can be checked before weights are loaded; return the base."""
    runs = Path(config.runs)
    if runs.exists() and not runs.is_dir():
        raise ConfigError(f"runs: {config.runs!r} is a file; give a folder")
    collect(config.data)
    require_space(runs, 256 * _MIB)
    base = resolve_base(config.base, trust_remote_code=config.model.trust_remote_code)
    check_attachable(base, config.model)
    load_tokenizer(base.folder, trust_remote_code=config.model.trust_remote_code)
    return base


def _stage(run: Run, name: str, step: Callable[[Run, _Write], dict[str, str]], *, adopting: bool) -> None:
    session, record = run.session, run.session.stage_record(name)
    session.stage, record.state, record.error = name, "running", None
    session.save()
    started, begun = datetime.now().astimezone().isoformat(timespec="seconds"), time.monotonic()
    write = _Write(run, adopting=adopting)
    try:
        record.artifacts = step(run, write)
    except KeyboardInterrupt:
        record.state = "stopped"
        session.save()
        raise
    except BaseException as error:
        record.state, session.stage = "failed", "failed"
        record.error = str(error) or type(error).__name__
        with contextlib.suppress(Exception):  # the first error is the one to tell, a full disk above all
            session.save()
        raise
    release_memory()
    elapsed = time.monotonic() - begun
    record.skipped = not write.computed
    if write.computed or record.seconds is None:
        record.started, record.seconds = started, round(elapsed, 2)
    record.state = "completed"
    session.save()
    run.say(f"{name}: " + (f"done in {elapsed:.0f} s" if write.computed else "finished before, skipped"))


class _Write:
    """Writes a stage's artifacts, but for those that are there already, in this session or (adopting) in another."""

    def __init__(self, run: Run, *, adopting: bool) -> None:
        self.run, self.adopting, self.computed = run, adopting, False

    def __call__(self, name: str, make: Callable[[Path], None], *parts: Any) -> None:
        """The artifact is there and current; `make` writes it into a staging folder where it is not.

        Args:
            parts: JSON values; together they decide whether an artifact is still the right one.
        """
        target, mark = self.run.artifact(name), fingerprint(name, _VERSIONS[name], *parts)
        if is_current(target, mark):
            return
        others = sorted(target.parent.parent.glob(f"aegis_v2_*/{name}"), reverse=True)
        if self.adopting and adopt(target, others, mark):
            self.run.say(f"{name}/ taken over from an earlier session: nothing that made it has changed")
            return
        self.computed = True
        with writing(target, kind=name, fingerprint=mark) as staging:
            make(staging)


def _deep_research_data(run: Run, write: _Write) -> dict[str, str]:
    data = run.config.data
    settings = data.model_dump(mode="json", exclude={"quality", "split"})
    inputs = [hash_file(path) for path in source_files(data)]

    def make(staging: Path) -> None:
        found = write_raw(staging, data, _Generator(run))
        run.say(f"{found['records']} records and {found['pairs']} pairs collected, {found['generated']} records generated")

    write("raw", make, settings, inputs, run.base.fingerprint, run.config.seed)
    return {"raw": "raw"}


class _Generator:
    """The base as a writer of samples; loaded when first asked."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.model: Any = None
        self.tokenizer: Any = None

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        config, base = self.run.config, self.run.base
        settings, trusted = config.data.generate, config.model.trust_remote_code
        if self.model is None:
            self.run.say(f"asking {base.spec} to think about {len(prompts)} topics")
            model: Any = load_model(base.folder, dtype=fast_dtype(), trust_remote_code=trusted)
            self.model = model.to(pick_device())
            self.tokenizer = load_tokenizer(base.folder, trust_remote_code=trusted)
        with bar("generating", len(prompts)) as advance:
            return complete(
                self.model,
                self.tokenizer,
                prompts,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=config.seed,
                on_batch=advance,
            )


def _data_cleansing(run: Run, write: _Write) -> dict[str, str]:
    config, base, system = run.config, run.base, run.config.model.system_prompt

    def make(staging: Path) -> None:
        trusted = config.model.trust_remote_code
        tokenizer = load_tokenizer(base.folder, trust_remote_code=trusted)
        limit = context_length(read_config(base.folder, spec=base.spec, trust_remote_code=trusted))

        def too_long(prompt: str) -> str | None:
            count = len(prompt_ids(tokenizer, prompt, system=system))
            return f"prompt longer than the model reads: {count} tokens of {limit}" if count > limit else None

        sizes = write_records(staging, run.artifact("raw"), config.data, seed=config.seed, too_long=too_long)
        run.say("records: " + ", ".join(f"{name} {count}" for name, count in sizes.items()))

    settings = config.data.model_dump(mode="json", include={"quality", "split"})
    write("records", make, settings, config.seed, system, base.fingerprint, run.content("raw"))
    return {"records": "records"}


def _so8t_ppo_training(run: Run, write: _Write) -> dict[str, str]:
    config, records = run.config, run.artifact("records")

    def make(staging: Path) -> None:
        require_space(staging, 256 * _MIB)
        trained = write_adapter(
            staging,
            config,
            run.base,
            train=read_split(records, "train"),
            pairs=read_pairs(records, "train"),
            validation=read_split(records, "validation"),
            origin={"session_id": run.session.session_id, "records_sha256": run.content("records")},
            say=run.say,
        )
        for check in trained.validation[-1:]:
            run.say(f"validation: accuracy {check['validation_accuracy']:.3f}, loss {check['validation_loss']:.3f}")

    settings = config.model_dump(mode="json", include={"model", "train", "seed"})
    write("adapter", make, settings, run.base.fingerprint, run.content("records"))
    return {"adapter": "adapter"}


def _aegis_v2_integration(run: Run, write: _Write) -> dict[str, str]:
    config, base = run.config, run.base.fingerprint
    export, judging = config.export.model_dump(mode="json"), config.evaluate.model_dump(mode="json")
    write("model", lambda staging: _fold(run, staging), export, base, run.content("adapter"))
    write("results", lambda staging: _evaluate(run, staging), judging, base, run.content("model"), run.content("records"))
    for name in ("report.html", "report.md"):
        text = (run.artifact("results") / name).read_text(encoding="utf-8")
        if not run.artifact(name).is_file() or run.artifact(name).read_text(encoding="utf-8") != text:
            write_text(run.artifact(name), text)
    return {"model": "model", "results": "results", "report": "report.html", "report_markdown": "report.md"}


def _fold(run: Run, staging: Path) -> None:
    run.say("folding LoRA and gates into the weights")
    certificate = write_model(prepare(run.artifact("adapter"), base_spec=run.config.base), staging, run.config.export)
    run.say(
        f"certificate: max |Δlogit| {certificate.max_abs_logit_difference:.2e}, KL {certificate.kl:.2e}, "
        f"top-1 agreement {certificate.top1_agreement:.4f}"
    )


def _evaluate(run: Run, staging: Path) -> None:
    test = read_split(run.artifact("records"), "test")
    confidence, results = run.config.evaluate.confidence, {}
    for name, folder in (("base", run.base.folder), ("candidate", run.artifact("model"))):
        run.say(f"judging {len(test)} held-out records with the {name}")
        results[name] = evaluate_decisions(_judge(run, folder), test, confidence=confidence, label=f"judging: {name}")
        (staging / name).mkdir()
        write_results(staging / name, results[name])
        draw_confusion(staging / name / "confusion.png", results[name], title=name)
        release_memory()
    adapter = run.artifact("adapter")
    html, markdown = render(
        session_id=run.session.session_id,
        base_spec=run.base.spec,
        base=results["base"],
        candidate=results["candidate"],
        certificate=json.loads((run.artifact("model") / CERTIFICATE).read_text(encoding="utf-8")),
        statistics=json.loads((run.artifact("records") / "statistics.json").read_text(encoding="utf-8")),
        decision_figures=[staging / name / "confusion.png" for name in results],
        training_figures=[adapter / "learning_curve.png", adapter / "alpha.png"],
    )
    (staging / "report.html").write_text(html, encoding="utf-8")
    (staging / "report.md").write_text(markdown, encoding="utf-8")


def _judge(run: Run, folder: Path) -> Judge:
    trusted = run.config.model.trust_remote_code
    return Judge.load(folder, batch_tokens=run.config.evaluate.batch_tokens, trust_remote_code=trusted)
