"""The main job: four durable stages in order. Each writes artifact folders; a finished one is never computed twice."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from aegis import __version__
from aegis.config import Config
from aegis.data.clean import clean
from aegis.data.generate import generate
from aegis.data.records import Pair, Record, Rejected, parse_pair, parse_record, read_jsonl, write_jsonl
from aegis.data.seed import FILES as SEED_FILES
from aegis.data.seed import FOLDER as SEED_FOLDER
from aegis.data.seed import seed_pairs, seed_records
from aegis.data.split import SPLITS, counts, pick_split, split_records
from aegis.data.topics import parse_topic
from aegis.durable.artifact import is_current, read_manifest, writing
from aegis.durable.files import fingerprint, hash_file, require_space, to_json, write_text
from aegis.durable.session import STAGES, Session, open_session
from aegis.errors import DataError
from aegis.evaluate.decisions import evaluate_decisions, write_results
from aegis.evaluate.judge import CALIBRATION, Judge
from aegis.evaluate.metrics import fit_temperature
from aegis.evaluate.report import draw_confusion, render
from aegis.export.fold import CERTIFICATE, prepare, write_model
from aegis.model.adapt import attach, freeze
from aegis.model.adapter import AdapterCard, save_adapter
from aegis.model.device import fast_dtype, pick_device, set_threads
from aegis.model.generate import complete
from aegis.model.load import Base, load_model, load_tokenizer, resolve_base
from aegis.progress import bar
from aegis.train.examples import encode_all
from aegis.train.figures import draw_alpha, draw_learning_curve
from aegis.train.sft import train_sft

Say = Callable[[str], None]
_VERSIONS = {"raw": 1, "records": 1, "adapter": 1, "model": 1, "results": 1}
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


def run_pipeline(config: Config, *, resume: bool = True, say: Say = lambda _: None) -> Session:
    """Run or resume the four stages and return the completed session.

    Args:
        resume: go on with the newest session of this config; False starts anew.
        say: gets one line for each thing worth telling.

    Raises:
        AegisError: what went wrong, with its remedy. The session is then marked failed; finished stages stay.
    """
    set_threads(config.threads)
    _preflight(config)
    base = resolve_base(config.base, trust_remote_code=config.model.trust_remote_code)
    identity = fingerprint(config.model_dump(mode="json"))
    session = open_session(Path(config.runs), config_fingerprint=identity, resume=resume)
    run = Run(config, base, session, say)
    say(f"session {session.session_id}, base {base.spec} ({base.model_type}, width {base.hidden_size})")
    steps = (_deep_research_data, _data_cleansing, _so8t_ppo_training, _aegis_v2_integration)
    for name, step in zip(STAGES, steps, strict=True):
        _stage(run, name, step)
    session.stage = "completed"
    session.save()
    return session


def _stage(run: Run, name: str, step: Callable[[Run], dict[str, str]]) -> None:
    session, record = run.session, run.session.stage_record(name)
    session.stage, record.state, record.error = name, "running", None
    record.started = datetime.now().astimezone().isoformat(timespec="seconds")
    session.save()
    begun = time.monotonic()
    computed: list[str] = []
    try:
        record.artifacts = step(Run(run.config, run.base, session, lambda line: (computed.append(line), run.say(line))[1]))
    except BaseException as error:
        record.state, session.stage = "failed", "failed"
        record.error = str(error) or type(error).__name__
        session.save()
        raise
    elapsed = time.monotonic() - begun
    record.skipped = not computed
    if computed or record.seconds is None:
        record.seconds = round(elapsed, 2)
    record.state = "completed"
    session.save()
    run.say(f"{name}: " + (f"done in {elapsed:.0f} s" if computed else "finished before, skipped"))


def _preflight(config: Config) -> None:
    """Read every file that the config names, so that a bad one is told before any model is loaded."""
    for path in (*config.data.records, *config.data.pairs):
        parse = parse_pair if path in config.data.pairs else parse_record
        read_jsonl(Path(path), parse, skip_bad=config.data.skip_bad)
    read_jsonl(_topics_file(config), parse_topic, skip_bad=config.data.skip_bad)
    require_space(Path(config.runs), 256 * _MIB)


# Stage 1 ---------------------------------------------------------------------------------------------------------------


def _deep_research_data(run: Run) -> dict[str, str]:
    data, target = run.config.data, run.artifact("raw")
    files = [Path(path) for path in (*data.records, *data.pairs)] + [_topics_file(run.config)]
    files += [SEED_FOLDER / name for name in SEED_FILES] if data.seed_records else []
    settings = data.model_dump(mode="json", exclude={"quality", "split"})
    inputs = [hash_file(path) for path in files]
    mark = fingerprint("raw", _VERSIONS["raw"], settings, inputs, run.base.fingerprint, run.config.seed)
    if not is_current(target, mark):
        with writing(target, kind="raw", fingerprint=mark) as staging:
            records, pairs, rejected = _collect(run.config)
            generated, broken = _generate(run)
            write_jsonl(staging / "records.jsonl", records + generated)
            write_jsonl(staging / "pairs.jsonl", pairs)
            write_jsonl(staging / "rejected.jsonl", rejected + broken)
        run.say(f"{len(records)} records and {len(pairs)} pairs collected, {len(generated)} records generated")
    return {"raw": "raw"}


def _collect(config: Config) -> tuple[list[Record], list[Pair], list[Rejected]]:
    data = config.data
    records = seed_records() if data.seed_records else []
    pairs = seed_pairs() if data.seed_records else []
    rejected: list[Rejected] = []
    for path in data.records:
        good, bad = read_jsonl(Path(path), parse_record, skip_bad=data.skip_bad)
        records, rejected = records + good, rejected + bad
    for path in data.pairs:
        good_pairs, bad = read_jsonl(Path(path), parse_pair, skip_bad=data.skip_bad)
        pairs, rejected = pairs + good_pairs, rejected + bad
    repeated = [name for name, count in Counter(record.id for record in records).items() if count > 1]
    if repeated:
        raise DataError(f"data.records: the id {repeated[0]!r} is used more than once; give every record its own")
    return records, pairs, rejected


def _generate(run: Run) -> tuple[list[Record], list[Rejected]]:
    settings = run.config.data.generate
    topics = read_jsonl(_topics_file(run.config), parse_topic, skip_bad=run.config.data.skip_bad)[0][: settings.samples]
    if not topics:
        return [], []
    run.say(f"asking {run.base.spec} to think about {len(topics)} topics")
    trusted = run.config.model.trust_remote_code
    model = load_model(run.base.folder, dtype=fast_dtype(), trust_remote_code=trusted)
    torch.nn.Module.to(model, pick_device())
    tokenizer = load_tokenizer(run.base.folder, trust_remote_code=trusted)
    with bar("generating", 5 * len(topics)) as advance:

        def ask(prompts: Any) -> list[str]:
            answers = complete(
                model,
                tokenizer,
                prompts,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=run.config.seed,
            )
            advance(len(prompts))
            return answers

        return generate(topics, ask, on_section=lambda name: advance(0, note=name))


def _topics_file(config: Config) -> Path:
    return Path(config.data.generate.topics) if config.data.generate.topics else SEED_FOLDER / "topics.jsonl"


# Stage 2 ---------------------------------------------------------------------------------------------------------------


def _data_cleansing(run: Run) -> dict[str, str]:
    data, target = run.config.data, run.artifact("records")
    settings = data.model_dump(mode="json", include={"quality", "split"})
    mark = fingerprint("records", _VERSIONS["records"], settings, run.config.seed, _content(run.artifact("raw")))
    if not is_current(target, mark):
        raw = run.artifact("raw")
        records = _read(raw / "records.jsonl", parse_record)
        cleaned = clean(records, _read(raw / "pairs.jsonl", parse_pair), data.quality)
        shares = {"validation": data.split.validation, "test": data.split.test, "seed": run.config.seed}
        splits = split_records(cleaned.records, **shares)
        if empty := [name for name in SPLITS if not splits[name]]:
            raise DataError(f"data.split: nothing is left for {empty[0]} after cleaning; give more records")
        pairs = [Pair(**{**vars(pair), "split": pick_split(pair.id, **shares)}) for pair in cleaned.pairs]
        rejected = _read_rejected(raw / "rejected.jsonl") + cleaned.rejected
        with writing(target, kind="records", fingerprint=mark) as staging:
            for name in SPLITS:
                write_jsonl(staging / f"{name}.jsonl", splits[name])
            write_jsonl(staging / "pairs.jsonl", pairs)
            write_jsonl(staging / "rejected.jsonl", rejected)
            statistics = _statistics(splits, pairs, rejected, cleaned.masked)
            (staging / "statistics.json").write_text(to_json(statistics), encoding="utf-8")
        sizes = ", ".join(f"{name} {len(splits[name])}" for name in SPLITS)
        run.say(f"{len(cleaned.records)} records kept ({sizes}), {len(rejected)} set aside with reasons")
    return {"records": "records"}


def _statistics(splits: dict[str, list[Record]], pairs: list[Pair], rejected: list[Rejected], masked: int) -> dict[str, Any]:
    every = [record for records in splits.values() for record in records]
    kinds = Counter(item.reason.split(" as ")[0].split(":")[0] for item in rejected)
    return {
        "splits": counts(splits),
        "pairs": dict(sorted(Counter(pair.split or "" for pair in pairs).items())),
        "domains": dict(sorted(Counter(record.domain for record in every).items())),
        "sources": dict(sorted(Counter(record.source for record in every).items())),
        "with_thinking": sum(record.thinking is not None for record in every),
        "personal_data_masked": masked,
        "rejected": dict(sorted(kinds.items())),
    }


# Stage 3 ---------------------------------------------------------------------------------------------------------------


def _so8t_ppo_training(run: Run) -> dict[str, str]:
    config, target = run.config, run.artifact("adapter")
    settings = config.model_dump(mode="json", include={"model", "train", "seed"})
    mark = fingerprint("adapter", _VERSIONS["adapter"], settings, run.base.fingerprint, _content(run.artifact("records")))
    if not is_current(target, mark):
        require_space(target.parent, 256 * _MIB)
        with writing(target, kind="adapter", fingerprint=mark) as staging:
            _train(run, staging)
    return {"adapter": "adapter"}


def _train(run: Run, staging: Path) -> None:
    config, records = run.config, run.artifact("records")
    trusted = config.model.trust_remote_code
    tokenizer = load_tokenizer(run.base.folder, trust_remote_code=trusted)
    weights = {"section_weight": config.train.loss.sections, "final_weight": config.train.loss.final}
    shared = {"system": config.model.system_prompt, "max_length": config.train.max_length, "seed": config.seed, **weights}
    pairs = [pair for pair in _read(records / "pairs.jsonl", parse_pair) if pair.split == "train"]
    train = _read(records / "train.jsonl", parse_record)
    examples, dropped = encode_all(tokenizer, train, pairs, thinking_records=config.train.thinking_records, **shared)
    held_out = _read(records / "validation.jsonl", parse_record)
    validation, _ = encode_all(tokenizer, held_out, [], thinking_records=0, **shared)
    torch.manual_seed(config.seed)
    dtype = getattr(torch, config.model.dtype)
    # On a CPU and short rows, plain attention trains a fifth faster than the fused one (docs/experiments.md).
    attention = "eager" if pick_device().type == "cpu" else None
    model = load_model(run.base.folder, dtype=dtype, trust_remote_code=trusted, attention=attention)
    torch.nn.Module.to(model, pick_device())
    adapted = attach(model, config.model)
    adapted.to(pick_device())
    report = freeze(adapted)
    run.say(str(report))
    tokens = sum(len(example.ids) for example in examples)
    run.say(f"{len(examples)} examples, {tokens:,} tokens an epoch, {dropped} left out as longer than train.max_length")
    pad_id = tokenizer.pad_token_id
    trained = train_sft(adapted, examples, validation, config.train, pad_id=pad_id, seed=config.seed)
    card = AdapterCard(
        base={key: str(value) for key, value in asdict(run.base).items() if key != "folder"},
        model=config.model.model_dump(mode="json"),
        alpha=trained.alpha,
        training={
            "aegis_version": __version__,
            "seed": config.seed,
            "settings": config.train.model_dump(mode="json"),
            "examples": len(examples),
            "steps": len(trained.history),
            "parameters": {**asdict(report), "percent": report.percent},
            "validation": trained.validation,
            "records_sha256": _content(records),
        },
        session_id=run.session.session_id,
    )
    save_adapter(staging, adapted, card)
    write_jsonl(staging / "history.jsonl", trained.history)
    draw_learning_curve(staging / "learning_curve.png", trained.history, trained.validation)
    draw_alpha(staging / "alpha.png", trained.history)
    if trained.validation:
        last = trained.validation[-1]
        run.say(f"validation: accuracy {last['validation_accuracy']:.3f}, loss {last['validation_loss']:.3f}")


# Stage 4 ---------------------------------------------------------------------------------------------------------------


def _aegis_v2_integration(run: Run) -> dict[str, str]:
    config = run.config
    model, results, records = (run.artifact(name) for name in ("model", "results", "records"))
    made_from = [_content(run.artifact("adapter")), _content(records), config.export.model_dump(mode="json")]
    model_mark = fingerprint("model", _VERSIONS["model"], run.base.fingerprint, made_from)
    if not is_current(model, model_mark):
        with writing(model, kind="model", fingerprint=model_mark) as staging:
            _fold_and_calibrate(run, staging)
    settings = config.evaluate.model_dump(mode="json")
    mark = fingerprint("results", _VERSIONS["results"], settings, _content(model), run.base.fingerprint)
    if not is_current(results, mark):
        with writing(results, kind="results", fingerprint=mark) as staging:
            _evaluate(run, staging)
    names = {"model": "model", "results": "results", "report": "report.html", "report_markdown": "report.md"}
    for name in ("report.html", "report.md"):
        text = (results / name).read_text(encoding="utf-8")
        if not run.artifact(name).is_file() or run.artifact(name).read_text(encoding="utf-8") != text:
            write_text(run.artifact(name), text)
    return names


def _fold_and_calibrate(run: Run, staging: Path) -> None:
    run.say("folding LoRA and gates into the weights")
    certificate = write_model(prepare(run.artifact("adapter"), base_spec=run.config.base), staging, run.config.export)
    run.say(
        f"certificate: max |Δlogit| {certificate.max_abs_logit_difference:.2e}, KL {certificate.kl:.2e}, "
        f"top-1 agreement {certificate.top1_agreement:.4f}"
    )
    validation = _read(run.artifact("records") / "validation.jsonl", parse_record)
    judge = _judge(run, staging)
    with bar("calibrating", len(validation)) as advance:
        logits, _ = judge.logits([record.prompt for record in validation], on_batch=advance)
    truth = torch.tensor([int(record.decision) for record in validation]).numpy()
    (staging / CALIBRATION).write_text(
        to_json({"temperature": fit_temperature(logits, truth), "n": len(validation)}), encoding="utf-8"
    )


def _evaluate(run: Run, staging: Path) -> None:
    test = _read(run.artifact("records") / "test.jsonl", parse_record)
    confidence, results = run.config.evaluate.confidence, {}
    for name, folder in (("base", run.base.folder), ("candidate", run.artifact("model"))):
        run.say(f"judging {len(test)} held-out records with the {name}")
        results[name] = evaluate_decisions(_judge(run, folder), test, confidence=confidence, label=f"judging: {name}")
        (staging / name).mkdir()
        write_results(staging / name, results[name])
        draw_confusion(staging / name / "confusion.png", results[name], title=name)
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
    return Judge.load(folder, batch_tokens=run.config.evaluate.batch_tokens)


# Shared ----------------------------------------------------------------------------------------------------------------


def _content(folder: Path) -> dict[str, str]:
    """The hashes of an artifact's files: what stands for its content in a later fingerprint."""
    return read_manifest(folder).files


def _read(path: Path, parse: Callable[..., Any]) -> list[Any]:
    return read_jsonl(path, parse)[0] if os.path.getsize(path) else []


def _read_rejected(path: Path) -> list[Rejected]:
    return [Rejected(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
