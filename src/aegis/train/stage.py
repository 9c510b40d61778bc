"""Stage 3: what goes into `adapter/`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from aegis import __version__
from aegis.config import Config
from aegis.data.records import Pair, Record, write_jsonl
from aegis.errors import DataError
from aegis.model.adapt import Adapted, attach, freeze
from aegis.model.adapter import AdapterCard, save_adapter
from aegis.model.calibration import fit, is_spelled
from aegis.model.device import pick_device, quick_attention
from aegis.model.lexical import LexicalHead
from aegis.model.load import Base, load_model, load_tokenizer
from aegis.model.prompt import prompt_ids
from aegis.train.checkpoints import Checkpoints
from aegis.train.examples import Example, encode_all
from aegis.train.figures import draw_alpha, draw_learning_curve
from aegis.train.sft import OnStep, Trained, train_sft


def write_adapter(
    folder: Path,
    config: Config,
    base: Base,
    *,
    train: Sequence[Record],
    pairs: Sequence[Pair],
    validation: Sequence[Record],
    origin: dict[str, Any],
    say: Callable[[str], None],
    checkpoints: Checkpoints | None = None,
    on_step: OnStep = lambda _: None,
) -> Trained:
    """Train on the records and the pairs' chosen sides; write the adapter, its history and its curves.

    Args:
        origin: `session_id` and `records_sha256`, for the card.

    Raises:
        DataError: if no record fits `train.max_length`.
    """
    tokenizer = load_tokenizer(base.folder, trust_remote_code=config.model.trust_remote_code)
    system, limit = config.model.system_prompt, config.train.max_length
    fitting = [record for record in validation if len(prompt_ids(tokenizer, record.prompt, system=system)) <= limit]
    examples, held_out, dropped = _examples(config, tokenizer, train, pairs, fitting)
    tokens = sum(len(example.ids) for example in examples)
    say(f"{len(examples)} examples, {tokens:,} tokens an epoch, {dropped} left out as longer than train.max_length")
    adapted = _load(config, base)
    report = freeze(adapted)
    say(str(report))
    trained = train_sft(
        adapted,
        examples,
        held_out,
        config.train,
        pad_id=tokenizer.pad_token_id,
        seed=config.seed,
        checkpoints=checkpoints,
        on_step=on_step,
    )
    training = {
        "aegis_version": __version__,
        "seed": config.seed,
        "settings": config.train.model_dump(mode="json"),
        "examples": len(examples),
        "steps": len(trained.history),
        "parameters": {**asdict(report), "percent": report.percent},
        "validation": trained.validation,
        "records_sha256": origin["records_sha256"],
    }
    facts = {key: value for key, value in asdict(base).items() if key != "folder"}
    model = config.model.model_dump(mode="json")
    save_adapter(folder, adapted, AdapterCard(facts, model, trained.alpha, training, origin["session_id"]))
    lexical = _lexical_head(folder, config, train, pairs) if config.model.lexical else None
    if trained.held_out:
        prompts = [record.prompt for record in fitting]
        deep, truth = trained.held_out
        second = lexical.logits(prompts) if lexical else None
        fit(deep, second, is_spelled(tokenizer, prompts), truth).save(folder)
    write_jsonl(folder / "history.jsonl", trained.history)
    draw_learning_curve(folder / "learning_curve.png", trained.history, trained.validation)
    draw_alpha(folder / "alpha.png", trained.history)
    return trained


def _lexical_head(folder: Path, config: Config, train: Sequence[Record], pairs: Sequence[Pair]) -> LexicalHead:
    rows = [(record.prompt, int(record.decision)) for record in train]
    rows += [(pair.prompt, int(pair.chosen.decision)) for pair in pairs]
    prompts, decisions = zip(*rows, strict=True)
    head = LexicalHead.fit(prompts, decisions, strength=config.train.lexical_strength)
    head.save(folder)
    return head


def _load(config: Config, base: Base) -> Adapted:
    """The base with everything attached, on the device, the same for the same seed."""
    device = pick_device()
    dtype = getattr(torch, config.model.dtype)
    trusted = config.model.trust_remote_code
    model = load_model(base.folder, dtype=dtype, trust_remote_code=trusted, attention=quick_attention(device))
    torch.manual_seed(config.seed)
    return attach(model, config.model).to(device)


def _examples(
    config: Config, tokenizer: Any, train: Sequence[Record], pairs: Sequence[Pair], validation: Sequence[Record]
) -> tuple[list[Example], list[Example], int]:
    settings = config.train
    shared: dict[str, Any] = {
        "system": config.model.system_prompt,
        "max_length": settings.max_length,
        "section_weight": settings.loss.sections,
        "final_weight": settings.loss.final,
        "seed": config.seed,
    }
    examples, dropped = encode_all(tokenizer, train, pairs, thinking_records=settings.thinking_records, **shared)
    held_out, _ = encode_all(tokenizer, validation, [], thinking_records=0, **shared)
    if not examples:
        raise DataError(f"train.max_length is {settings.max_length}, and no record is that short; raise it")
    return examples, held_out, dropped
