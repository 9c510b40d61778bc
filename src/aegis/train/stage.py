"""Stage 3: what goes into `sft/`, `reward/` and `adapter/`."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from aegis import __version__
from aegis.config import Config
from aegis.data.records import Pair, Record, write_jsonl
from aegis.errors import DataError
from aegis.model.adapt import Adapted, attach, freeze
from aegis.model.adapter import AdapterCard, load_adapter, read_card, require_base, save_adapter
from aegis.model.calibration import fit, is_spelled
from aegis.model.device import fast_dtype, pick_device, quick_attention
from aegis.model.lexical import FILE as LEXICAL
from aegis.model.lexical import LexicalHead
from aegis.model.load import Base, load_model, load_tokenizer
from aegis.model.prompt import prompt_ids
from aegis.model.scalar import VALUE, ScalarHead
from aegis.model.tags import Tags, add_tags
from aegis.train.checkpoints import Checkpoints
from aegis.train.examples import Example, encode_all, response_ids
from aegis.train.figures import draw_alpha, draw_learning_curve, draw_ppo
from aegis.train.ppo import PPO, OnUpdate
from aegis.train.quadruple import QuadrupleThinking, distance
from aegis.train.reward import EncodedPair, load_reward, save_reward, train_reward
from aegis.train.sft import OnStep, Trained, train_sft, validate


def write_supervised(
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
    model, tokenizer, tags = _tagged(config, base, dtype=getattr(torch, config.model.dtype))
    system, limit = config.model.system_prompt, config.train.max_length
    fitting = [record for record in validation if len(prompt_ids(tokenizer, record.prompt, system=system)) <= limit]
    examples, held_out, dropped = _examples(config, tokenizer, train, pairs, fitting)
    tokens = sum(len(example.ids) for example in examples)
    say(f"{len(examples)} examples, {tokens:,} tokens an epoch, {dropped} left out as longer than train.max_length")
    torch.manual_seed(config.seed)
    adapted = attach(model, config.model, tags=tags).to(pick_device())
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


def _tagged(config: Config, base: Base, *, dtype: torch.dtype) -> tuple[Any, Any, Tags]:
    """The base with its tokenizer, both knowing the tags."""
    trusted = config.model.trust_remote_code
    tokenizer = load_tokenizer(base.folder, trust_remote_code=trusted)
    model = load_model(base.folder, dtype=dtype, trust_remote_code=trusted, attention=quick_attention(pick_device()))
    return model, tokenizer, add_tags(tokenizer, model)


def _supervised(config: Config, base: Base, folder: Path) -> tuple[Adapted, Any, AdapterCard]:
    """The supervised model, with a frozen copy of itself, in the precision in which sampling is fast."""
    model, tokenizer, tags = _tagged(config, base, dtype=fast_dtype())
    card = read_card(folder)
    require_base(card, base, folder=folder)
    torch.manual_seed(config.seed)
    adapted = load_adapter(folder, model, card, tags=tags).to(pick_device())
    adapted.add_reference()
    return adapted, tokenizer, card


def write_reward(
    folder: Path,
    config: Config,
    base: Base,
    *,
    supervised: Path,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    say: Callable[[str], None],
    checkpoints: Checkpoints | None = None,
) -> dict[str, Any]:
    """Train the reward model on top of `supervised`; return its metrics on the held-out pairs."""
    settings = config.train.reward
    adapted, tokenizer, _ = _supervised(config, base, supervised)
    adapted.add_reward(settings.lora)
    adapted.to(pick_device())
    train, tests = (_pairs(config, tokenizer, items) for items in (pairs, held_out))
    if settings.pairs is not None:
        train = random.Random(f"pairs:{config.seed}").sample(train, min(settings.pairs, len(train)))
    say(f"reward model: {len(train)} pairs to learn from, {len(tests)} held out")
    model, report, logs = train_reward(
        adapted,
        train,
        tests,
        settings,
        pad_id=tokenizer.pad_token_id,
        seed=config.seed,
        clip_norm=config.train.clip_norm,
        checkpoints=checkpoints,
    )
    metrics = {**asdict(report), "steps": len(logs)}
    facts = {key: value for key, value in asdict(base).items() if key != "folder"}
    save_reward(folder, adapted, model, {"base": facts, "settings": settings.model_dump(mode="json"), "metrics": metrics})
    write_jsonl(folder / "history.jsonl", logs)
    say(
        f"reward model: accuracy {report.accuracy:.3f} on {report.pairs} held-out pairs, "
        f"the longer side wins {report.longer_wins:.2f}"
    )
    return metrics


def write_policy(
    folder: Path,
    config: Config,
    base: Base,
    *,
    supervised: Path,
    reward: Path | None,
    train: Sequence[Record],
    validation: Sequence[Record],
    say: Callable[[str], None],
    checkpoints: Checkpoints | None = None,
    on_update: OnUpdate = lambda _: None,
) -> dict[str, Any]:
    """Go on from `supervised` by PPO; write an adapter folder like its own, with the value head and PPO's history."""
    settings = config.train.ppo
    adapted, tokenizer, card = _supervised(config, base, supervised)
    model = None
    if reward and settings.weights.reward_model:
        model = load_reward(reward, adapted, base_fingerprint=base.fingerprint, settings=config.train.reward)
    adapted.to(pick_device())
    adapted.train_only("default")
    torch.manual_seed(config.seed)
    value = ScalarHead(adapted.head.features).to(adapted.device)
    system, limit = config.model.system_prompt, config.train.max_length
    encoded = [(record, tuple(prompt_ids(tokenizer, record.prompt, system=system))) for record in train]
    asked = [(record, ids) for record, ids in encoded if len(ids) <= limit]
    task = QuadrupleThinking(adapted, tokenizer, [r for r, _ in asked], [ids for _, ids in asked], settings)
    ppo = PPO(
        adapted,
        value,
        task,
        settings,
        pad_id=tokenizer.pad_token_id,
        seed=config.seed,
        clip_norm=config.train.clip_norm,
        reward=model,
        checkpoints=checkpoints,
        on_update=on_update,
    )
    say(
        f"PPO: {settings.updates} updates of {settings.batch} responses; layers below {ppo.layer} of {adapted.depth} are "
        "computed once for policy, reference, value and reward"
    )
    logs = ppo.train()
    fitting = [record for record in validation if len(prompt_ids(tokenizer, record.prompt, system=system)) <= limit]
    shared: dict[str, Any] = {"system": system, "max_length": limit, "section_weight": 0.0, "final_weight": 0.0}
    held_out, _ = encode_all(tokenizer, fitting, [], thinking_records=0, seed=config.seed, **shared)
    checks: dict[str, float] = {}
    lexical = LexicalHead.load(supervised)
    if held_out:
        checks, (deep, truth) = validate(adapted, held_out, config.train, pad_id=tokenizer.pad_token_id)
        prompts = [record.prompt for record in fitting]
        fit(deep, lexical.logits(prompts) if lexical else None, is_spelled(tokenizer, prompts), truth).save(folder)
    metrics = summarize(logs) | checks
    training = {**card.training, "ppo": {"settings": settings.model_dump(mode="json"), "metrics": metrics}}
    save_adapter(folder, adapted, replace(card, training=training))
    value.save(folder / VALUE)
    for name in (LEXICAL, "history.jsonl", "learning_curve.png", "alpha.png"):
        if (supervised / name).exists():
            shutil.copyfile(supervised / name, folder / name)
    (folder / "ppo_history.jsonl").write_text("".join(json.dumps(log) + "\n" for log in logs), encoding="utf-8")
    draw_ppo(folder / "ppo.png", logs)
    rise = f"{metrics['reward_first']:+.2f} → {metrics['reward_last']:+.2f}"
    say(f"PPO: reward {rise}, KL {metrics['kl_last']:.2f} nats a response")
    return metrics


def summarize(logs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """First and last quarter of PPO's updates side by side."""
    quarter = max(1, len(logs) // 4)
    first, last = logs[:quarter], logs[-quarter:]

    def mean(rows: Sequence[dict[str, Any]], key: str) -> float:
        return sum(row[key] for row in rows) / len(rows)

    return {
        "updates": len(logs),
        "reward_first": mean(first, "reward"),
        "reward_last": mean(last, "reward"),
        "reward_std_first": mean(first, "reward_std"),
        "kl_last": mean(last, "kl"),
        "entropy_last": mean(last, "entropy"),
        "ended_last": mean(last, "ended"),
    }


def _pairs(config: Config, tokenizer: Any, pairs: Sequence[Pair]) -> list[EncodedPair]:
    """The pairs as ids; those longer than `train.max_length` are left out."""
    found = []
    for pair in pairs:
        prompt = prompt_ids(tokenizer, pair.prompt, system=config.model.system_prompt)
        chosen, rejected = (
            (*prompt, *response_ids(tokenizer, side.thinking, section_weight=0, final_weight=0)[0])
            for side in (pair.chosen, pair.rejected)
        )
        if max(len(chosen), len(rejected)) <= config.train.max_length:
            found.append(EncodedPair(chosen, rejected, distance(pair.chosen.decision, pair.rejected.decision)))
    return found


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
