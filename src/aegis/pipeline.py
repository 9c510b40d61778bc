"""The main job: four durable stages in order. Each writes artifact folders; a finished one is never computed twice."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from aegis.config import Config
from aegis.data.stage import collect, read_pairs, read_split, source_files, write_raw, write_records
from aegis.durable.artifact import adopt, is_current, read_manifest, writing
from aegis.durable.files import fingerprint, hash_file, require_space, write_text
from aegis.durable.heartbeat import Heartbeat
from aegis.durable.interrupt import Interrupt
from aegis.durable.journal import Journal
from aegis.durable.lock import only_process
from aegis.durable.progress_log import ProgressLog, Thresholds
from aegis.durable.session import STAGES, Session, open_session
from aegis.durable.store import Snapshot, SnapshotStore
from aegis.errors import ConfigError, StoppedError
from aegis.evaluate.decisions import evaluate_decisions, write_results
from aegis.evaluate.judge import Judge
from aegis.evaluate.report import draw_confusion, render
from aegis.export.fold import CERTIFICATE, prepare, write_model
from aegis.model.adapt import check_attachable
from aegis.model.device import fast_dtype, pick_device, release_memory, set_threads
from aegis.model.generate import complete
from aegis.model.load import Base, context_length, load_model, load_tokenizer, read_config, resolve_base
from aegis.model.prompt import prompt_ids
from aegis.progress import bar, listening
from aegis.train.checkpoints import Checkpoints
from aegis.train.stage import write_adapter

Say = Callable[[str], None]
_VERSIONS = {"raw": 2, "records": 2, "adapter": 3, "model": 3, "results": 3}
_MIB = 1 << 20


@dataclass(frozen=True)
class Run:
    """What every stage reads: settings, base, where to write, whom to tell, and whether to stop."""

    config: Config
    base: Base
    session: Session
    say: Say
    interrupt: Interrupt
    log: ProgressLog

    def artifact(self, name: str) -> Path:
        return self.session.folder / name

    def content(self, name: str) -> dict[str, str]:
        """The hashes of an artifact's files: what stands for its content in a later fingerprint."""
        return read_manifest(self.artifact(name)).files

    def unfinished(self, stage: str) -> Path:
        """Where a stage keeps what it has worked out so far."""
        return self.session.folder / "checkpoints" / stage

    def journal(self, stage: str, mark: str) -> Journal:
        """The finished shards of a stage; `mark` stands for what they are made of."""
        return Journal(self.unfinished(stage) / f"{mark[:16]}.jsonl", check=self.interrupt.check, say=self.say)

    def checkpoints(self, stage: str, mark: str) -> Checkpoints:
        """The snapshots of a training stage."""
        durable = self.config.durable

        def wait(seconds: float) -> None:
            for _ in range(round(seconds)):
                self.interrupt.check()
                time.sleep(1)

        def saved(snapshot: Snapshot) -> None:
            facts = {"step": snapshot.step, "seconds": snapshot.seconds, "size": snapshot.size}
            self.session.add_snapshot(stage, snapshot.folder, **facts)

        store = SnapshotStore(self.unfinished(stage), fingerprint=mark, keep=durable.keep_training, say=self.say, wait=wait)
        return Checkpoints(store, interval_s=durable.interval_s, check=self.interrupt.check, on_saved=saved, say=self.say)


def run_pipeline(
    config: Config, *, resume: bool = True, say: Say = lambda _: None, command: dict[str, Any] | None = None
) -> Session:
    """Run or resume the four stages and return the completed session.

    Args:
        resume: go on with the newest session of this config; False starts anew and takes nothing over.
        say: gets one line for each thing worth telling.
        command: `argv` and `cwd` of this call, for the watcher that may have to repeat it.

    Raises:
        StoppedError: if a signal asked for a stop; what was finished is kept.
        AegisError: what went wrong, with its remedy. The session is then marked failed; finished stages stay.
    """
    set_threads(config.threads)
    with Interrupt() as interrupt:
        base = _preflight(config)
        interrupt.check()
        session = _open(config, resume=resume)
        with only_process(session.folder, wait_s=1):
            if left := session.take_over(command or {}):
                say(left)
            thresholds = Thresholds(**config.durable.model_dump(include={field.name for field in fields(Thresholds)}))
            log = ProgressLog(session.folder, interval_s=config.durable.interval_s, thresholds=thresholds, say=say)
            run = Run(config, base, session, say, interrupt, log)
            say(f"session {session.session_id}, base {base.spec} ({base.model_type}, width {base.hidden_size})")
            with contextlib.closing(log), _signs_of_life(run):
                _stages(run, adopting=resume)
    return session


def _open(config: Config, *, resume: bool) -> Session:
    """The session to work on, found or made by one process at a time. Only what changes results names it."""
    identity = fingerprint(config.model_dump(mode="json", exclude={"durable"}))
    runs = Path(config.runs)
    with only_process(runs, wait_s=30):
        return open_session(runs, config_fingerprint=identity, resume=resume)


@contextlib.contextmanager
def _signs_of_life(run: Run) -> Iterator[None]:
    """Every advance of a bar is a sign of life, and a place to stop unless something must be saved first."""
    beat = Heartbeat(run.session.folder)

    def heard(doing: str, done: int, total: int, note: str, stoppable: bool) -> None:
        beat(run.session.stage, doing, done, total, note)
        run.log.update(stage=run.session.stage)
        if stoppable:
            run.interrupt.check()

    beat(run.session.stage, "starting", 0, 0)
    with listening(heard):
        yield


def _stages(run: Run, *, adopting: bool) -> None:
    steps = (_deep_research_data, _data_cleansing, _so8t_ppo_training, _aegis_v2_integration)
    for name, step in zip(STAGES, steps, strict=True):
        run.interrupt.check()
        _stage(run, name, step, adopting=adopting)
    run.session.stage = "completed"
    run.session.save()
    run.session.event("completed", "all stages are done")


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
    record.attempts += 1
    session.save()
    attempt = session.begin_attempt(name)
    started, begun = datetime.now().astimezone().isoformat(timespec="seconds"), time.monotonic()
    write = _Write(run, adopting=adopting)
    try:
        record.artifacts = step(run, write)
    except (KeyboardInterrupt, StoppedError) as stop:
        record.state = "stopped"
        session.save()
        session.end_attempt(attempt, "stopped")
        session.event("stopped", f"{name}: {stop}")
        raise
    except BaseException as error:
        record.state, session.stage = "failed", "failed"
        record.error = str(error) or type(error).__name__
        with contextlib.suppress(Exception):  # the first error is the one to tell, a full disk above all
            session.save()
            session.end_attempt(attempt, "failed")
            session.event("failed", f"{name}: {record.error}")
        raise
    release_memory()
    elapsed = time.monotonic() - begun
    record.skipped = not write.computed
    if write.computed or record.seconds is None:
        record.started, record.seconds = started, round(elapsed, 2)
    record.state = "completed"
    session.save()
    session.end_attempt(attempt, "completed" if write.computed else "skipped")
    run.say(f"{name}: " + (f"done in {elapsed:.0f} s" if write.computed else "finished before, skipped"))


class _Write:
    """Writes a stage's artifacts, but for those that are there already, in this session or (adopting) in another."""

    def __init__(self, run: Run, *, adopting: bool) -> None:
        self.run, self.adopting, self.computed = run, adopting, False

    def __call__(self, name: str, make: Callable[[Path, str], None], *parts: Any) -> None:
        """The artifact is there and current; `make` writes it into a staging folder where it is not.

        Args:
            make: gets the staging folder and the fingerprint of what the artifact is made of.
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
            make(staging, mark)


def _deep_research_data(run: Run, write: _Write) -> dict[str, str]:
    data = run.config.data
    settings = data.model_dump(mode="json", exclude={"quality", "split"})
    inputs = [hash_file(path) for path in source_files(data)]

    def make(staging: Path, mark: str) -> None:
        found = write_raw(staging, data, _Generator(run, run.journal("deep_research_data", mark)))
        run.say(f"{found['records']} records and {found['pairs']} pairs collected, {found['generated']} records generated")

    write("raw", make, settings, inputs, run.base.fingerprint, run.config.seed)
    shutil.rmtree(run.unfinished("deep_research_data"), ignore_errors=True)
    return {"raw": "raw"}


class _Generator:
    """The base as a writer of samples; loaded when first asked for something that the journal does not hold."""

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
                answers += self.journal(fingerprint("generated", *batch), functools.partial(self._complete, batch))
                advance(len(batch))
        return answers

    def _complete(self, prompts: Sequence[str]) -> list[str]:
        """One batch; its seed comes from its prompts, so that it does not matter which batches came before."""
        config, base = self.run.config, self.run.base
        settings, trusted = config.data.generate, config.model.trust_remote_code
        if self.model is None:
            self.run.say(f"asking {base.spec} to write samples")
            model: Any = load_model(base.folder, dtype=fast_dtype(), trust_remote_code=trusted)
            self.model = model.to(pick_device())
            self.tokenizer = load_tokenizer(base.folder, trust_remote_code=trusted)
        return complete(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=int(fingerprint(config.seed, *prompts)[:15], 16),
        )


def _data_cleansing(run: Run, write: _Write) -> dict[str, str]:
    config, base, system = run.config, run.base, run.config.model.system_prompt

    def make(staging: Path, mark: str) -> None:
        trusted = config.model.trust_remote_code
        tokenizer = load_tokenizer(base.folder, trust_remote_code=trusted)
        limit = context_length(read_config(base.folder, spec=base.spec, trust_remote_code=trusted))

        def too_long(prompt: str) -> str | None:
            count = len(prompt_ids(tokenizer, prompt, system=system))
            return f"prompt longer than the model reads: {count} tokens of {limit}" if count > limit else None

        journal = run.journal("data_cleansing", mark)
        raw = run.artifact("raw")
        sizes = write_records(staging, raw, config.data, seed=config.seed, too_long=too_long, remember=journal)
        run.say("records: " + ", ".join(f"{name} {count}" for name, count in sizes.items()))

    settings = config.data.model_dump(mode="json", include={"quality", "split"})
    write("records", make, settings, config.seed, system, base.fingerprint, run.content("raw"))
    shutil.rmtree(run.unfinished("data_cleansing"), ignore_errors=True)
    return {"records": "records"}


def _so8t_ppo_training(run: Run, write: _Write) -> dict[str, str]:
    config, records = run.config, run.artifact("records")

    def make(staging: Path, mark: str) -> None:
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
            checkpoints=run.checkpoints("so8t_ppo_training", mark),
            on_step=lambda progress: run.log.update(
                stage=run.session.stage,
                step=progress.log.step,
                steps=progress.steps,
                epoch=progress.epoch,
                loss=progress.log.loss,
                samples=progress.samples,
                tokens=progress.log.tokens,
            ),
        )
        for check in trained.validation[-1:]:
            run.say(f"validation: accuracy {check['validation_accuracy']:.3f}, loss {check['validation_loss']:.3f}")

    settings = config.model_dump(mode="json", include={"model", "train", "seed"})
    write("adapter", make, settings, run.base.fingerprint, run.content("records"))
    return {"adapter": "adapter"}


def _aegis_v2_integration(run: Run, write: _Write) -> dict[str, str]:
    config, base = run.config, run.base.fingerprint
    export, judging = config.export.model_dump(mode="json"), config.evaluate.model_dump(mode="json")
    write("model", lambda staging, _: _fold(run, staging), export, base, run.content("adapter"))
    write("results", lambda staging, _: _evaluate(run, staging), judging, base, run.content("model"), run.content("records"))
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
