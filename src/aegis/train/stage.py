"""Stage 3: what goes into `sft/`, `reward/` and `adapter/`."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from aegis import __version__
from aegis.config import Config, GroupSettings, ModelSettings, PpoSettings
from aegis.data.mixture import Dataset, Mixture
from aegis.data.records import Pair, Record, write_jsonl
from aegis.engine.judge import Judge
from aegis.engine.response_sampler import Limits
from aegis.errors import DataError
from aegis.model.adapted import Adapted, attach, freeze
from aegis.model.adapter_folder import (
    AdapterCard,
    load_adapter,
    read_card,
    require_base,
    save_adapter,
)
from aegis.model.base import Base, context_length
from aegis.model.calibration import fit, is_spelled
from aegis.model.device import fast_dtype, pick_device, quick_attention
from aegis.model.grad_checkpoint import checkpoint_layers
from aegis.model.heads import VALUE_HEAD_FILE, ScalarHead
from aegis.model.lexical import LEXICAL_HEAD_FILE, LexicalHead
from aegis.model.offload import free_room, offload_layers
from aegis.model.prompt import prompt_ids
from aegis.model.tags import Tags, add_tags
from aegis.train.evidence import EVIDENCE_FILE, EVIDENCE_PICTURE, write_evidence
from aegis.train.examples import Example, encode_all, encode_pair, mixed
from aegis.train.figures import draw_alpha, draw_learning_curve, draw_ppo, draw_reward
from aegis.train.ppo import PPO, OnUpdate
from aegis.train.reward import EncodedPair, load_reward, save_reward, train_reward
from aegis.train.sft import OnStep, Trained, train_sft, validate
from aegis.train.snapshot_policy import SnapshotPolicy
from aegis.train.task import QuadrupleThinking, distance
from aegis.train.tracking import Tracker


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
    mixture: Mixture | None = None,
    checkpoints: SnapshotPolicy | None = None,
    tracker: Tracker | None = None,
    on_step: OnStep = lambda _: None,
) -> Trained:
    """Train on the records and the pairs' chosen sides; write the adapter, its history and its
    curves.

    Args:
        origin: `session_id` and `records_sha256`, for the card.
        mixture: what `train.datasets` makes of `train` and `pairs`, which it then stands for; None
            without datasets.

    Raises:
        DataError: if no record fits `train.max_length`.
    """
    model, tokenizer, tags = _tagged(config, base, dtype=getattr(torch, config.model.dtype))
    system, limit = config.model.system_prompt, config.train.max_length
    others: Sequence[Dataset] = ()
    if mixture:
        train, pairs, others = mixture.own.records, mixture.pairs, mixture.others
        validation = [*validation, *mixture.validation]
    fitting = [
        record
        for record in validation
        if len(prompt_ids(tokenizer, record.prompt, system=system)) <= limit
    ]
    examples, held_out, dropped, sizes = _examples(config, tokenizer, train, pairs, fitting, others)
    shares = _shares(mixture, sizes) if mixture else []
    epoch = mixed(shares, seed=config.seed, epoch=0) if shares else range(len(examples))
    tokens = sum(len(examples[index].ids) for index in epoch)
    say(
        f"{len(epoch)} examples, {tokens:,} tokens an epoch, {dropped} left out as longer than train.max_length"
    )
    torch.manual_seed(config.seed)
    adapted = _placed(attach(model, config.model, tags=tags), config.model)
    report = freeze(adapted)
    say(str(report))
    trained = train_sft(
        adapted,
        examples,
        held_out,
        config.train,
        pad_id=tokenizer.pad_token_id,
        seed=config.seed,
        shares=shares,
        checkpoints=checkpoints,
        tracker=tracker,
        on_step=on_step,
    )
    training = {
        "aegis_version": __version__,
        "seed": config.seed,
        "settings": config.train.model_dump(
            mode="json", exclude={"datasets"}
        ),  # the card is published, paths are not
        "datasets": mixture.facts if mixture else [],
        "examples": len(epoch),
        "steps": len(trained.history),
        "parameters": {**asdict(report), "percent": report.percent},
        "validation": trained.validation,
        "records_sha256": origin["records_sha256"],
    }
    facts = {key: value for key, value in asdict(base).items() if key != "folder"}
    model = config.model.model_dump(mode="json")
    save_adapter(
        folder, adapted, AdapterCard(facts, model, trained.alpha, training, origin["session_id"])
    )
    everything = [*train, *(record for dataset in others for record in dataset.records)]
    lexical = _lexical_head(folder, config, everything, pairs) if config.model.lexical else None
    if trained.held_out:
        prompts = [record.prompt for record in fitting]
        deep, truth = trained.held_out
        second = lexical.logits(prompts) if lexical else None
        fit(deep, second, is_spelled(tokenizer, prompts), truth).save(folder)
    write_jsonl(folder / "history.jsonl", trained.history)
    draw_learning_curve(folder / "learning_curve.png", trained.history, trained.validation)
    draw_alpha(folder / "alpha.png", trained.history)
    write_evidence(folder, trained.history)
    return trained


def _shares(mixture: Mixture, sizes: Sequence[int]) -> list[tuple[int, float]]:
    """(examples, weight) of the run's own records, then of each dataset.

    Raises:
        DataError: if an epoch would hold no example.
    """
    weights = [mixture.own.weight, *(dataset.weight for dataset in mixture.others)]
    shares = list(zip(sizes, weights, strict=True))
    if not any(round(weight * count) for count, weight in shares):
        raise DataError(
            "train.datasets: round(weight * n) is 0 for every dataset, so that an epoch is empty; raise a weight"
        )
    return shares


def _lexical_head(
    folder: Path, config: Config, train: Sequence[Record], pairs: Sequence[Pair]
) -> LexicalHead:
    rows = [(record.prompt, int(record.decision)) for record in train]
    rows += [(pair.prompt, int(pair.chosen.decision)) for pair in pairs]
    prompts, decisions = zip(*rows, strict=True)
    head = LexicalHead.fit(prompts, decisions, strength=config.train.lexical_strength)
    head.save(folder)
    return head


def _tagged(config: Config, base: Base, *, dtype: torch.dtype) -> tuple[Any, Any, Tags]:
    """The base with its tokenizer, both knowing the tags."""
    tokenizer = base.load_tokenizer()
    model = base.load_model(
        dtype=dtype,
        attention=quick_attention(pick_device()),
        quantization=config.model.quantization,
    )
    return model, tokenizer, add_tags(tokenizer, model)


def _placed(adapted: Adapted, settings: ModelSettings) -> Adapted:
    """On its device, or with some layers waiting in main memory, and ready for the backward
    pass."""
    if settings.offload:
        offload_layers(adapted.base, device=pick_device(), room=free_room())
    adapted.to(pick_device())
    if settings.gradient_checkpointing:
        checkpoint_layers(adapted)
    return adapted


def _supervised(config: Config, base: Base, folder: Path) -> tuple[Adapted, Any, AdapterCard]:
    """The supervised model, with a frozen copy of itself, in the precision in which sampling is
    fast."""
    model, tokenizer, tags = _tagged(config, base, dtype=fast_dtype())
    card = read_card(folder)
    require_base(card, base, folder=folder)
    torch.manual_seed(config.seed)
    adapted = _placed(load_adapter(folder, model, card, tags=tags), config.model)
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
    checkpoints: SnapshotPolicy | None = None,
    tracker: Tracker | None = None,
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
        tracker=tracker,
    )
    metrics = {**asdict(report), "steps": len(logs)}
    facts = {key: value for key, value in asdict(base).items() if key != "folder"}
    save_reward(
        folder,
        adapted,
        model,
        {"base": facts, "settings": settings.model_dump(mode="json"), "metrics": metrics},
    )
    write_jsonl(folder / "history.jsonl", logs)
    draw_reward(folder / "learning_curve.png", logs, held_out=report.accuracy)
    shown = {
        name: "not known" if value is None else f"{value:.3f}" for name, value in metrics.items()
    }
    say(
        f"reward model: accuracy {shown['accuracy']} on {report.pairs} held-out pairs, "
        f"longer side wins {shown['longer_wins']} (and is the better one in {shown['longer_chosen']})"
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
    checkpoints: SnapshotPolicy | None = None,
    tracker: Tracker | None = None,
    on_update: OnUpdate = lambda _: None,
) -> dict[str, Any]:
    """Go on from `supervised` by PPO; write an adapter folder like its own, with the value head and
    PPO's history."""
    settings = config.train.ppo
    adapted, tokenizer, card = _supervised(config, base, supervised)
    model = None
    if reward and settings.weights.reward_model:
        model = load_reward(
            reward, adapted, base_fingerprint=base.fingerprint, settings=config.train.reward
        )
    adapted.to(pick_device())
    adapted.train_only("default")
    torch.manual_seed(config.seed)
    value = ScalarHead(adapted.head.features).to(adapted.device)
    ppo = PPO(
        adapted,
        value,
        _task(config, adapted, tokenizer, train, settings, supervised=supervised),
        settings,
        pad_id=tokenizer.pad_token_id,
        seed=config.seed,
        clip_norm=config.train.clip_norm,
        reward=model,
        checkpoints=checkpoints,
        tracker=tracker,
        on_update=on_update,
    )
    say(
        f"PPO: {settings.updates} updates of {settings.batch} responses; layers below {ppo.layer} of {adapted.depth} are "
        "computed once for policy, reference, value and reward"
    )
    logs = ppo.train()
    metrics = _write_adapter(
        folder,
        config,
        adapted,
        tokenizer,
        card,
        supervised=supervised,
        validation=validation,
        algorithm="ppo",
        settings=settings.model_dump(mode="json"),
        logs=logs,
        metrics=summarize(logs),
    )
    value.save(folder / VALUE_HEAD_FILE)
    draw_ppo(folder / "ppo.png", logs)
    rise = f"{metrics['reward_first']:+.2f} → {metrics['reward_last']:+.2f}"
    say(f"PPO: reward {rise}, KL {metrics['kl_last']:.2f} nats a response")
    return metrics


def write_preference(
    folder: Path,
    config: Config,
    base: Base,
    *,
    supervised: Path,
    pairs: Sequence[Pair],
    validation: Sequence[Record],
    say: Callable[[str], None],
    checkpoints: SnapshotPolicy | None = None,
    on_log: Callable[[dict[str, Any], int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Go on from `supervised` by DPO on the pairs; write an adapter folder like its own, with DPO's
    history.

    Raises:
        DataError: if no pair fits `train.max_length`.
    """
    from aegis.train.preference import encode_preferences, train_dpo  # needs the extra `trl`

    settings = config.train.dpo
    adapted, tokenizer, card = _supervised(config, base, supervised)
    adapted.to(pick_device())
    encoded = encode_preferences(
        tokenizer, pairs, system=config.model.system_prompt, max_length=config.train.max_length
    )
    say(
        f"DPO: {len(encoded)} pairs, {len(pairs) - len(encoded)} left out as longer than train.max_length"
    )
    logs = train_dpo(
        adapted,
        encoded,
        settings,
        tokenizer=tokenizer,
        seed=config.seed,
        clip_norm=config.train.clip_norm,
        checkpoints=checkpoints,
        on_log=on_log,
    )
    metrics = _write_adapter(
        folder,
        config,
        adapted,
        tokenizer,
        card,
        supervised=supervised,
        validation=validation,
        algorithm="dpo",
        settings=settings.model_dump(mode="json"),
        logs=logs,
        metrics={
            "steps": len(logs),
            **quarters(logs, "loss", "rewards/margins", "rewards/accuracies"),
        },
    )
    margins = f"{metrics['rewards/margins_first']:+.2f} → {metrics['rewards/margins_last']:+.2f}"
    say(
        f"DPO: margin of the chosen side {margins}, accuracy {metrics['rewards/accuracies_last']:.2f}"
    )
    return metrics


def write_group(
    folder: Path,
    config: Config,
    base: Base,
    *,
    algorithm: Literal["grpo", "rloo"],
    supervised: Path,
    reward: Path | None,
    train: Sequence[Record],
    validation: Sequence[Record],
    say: Callable[[str], None],
    checkpoints: SnapshotPolicy | None = None,
    on_log: Callable[[dict[str, Any], int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Go on from `supervised` by GRPO or RLOO; write an adapter folder like its own, with the
    training's history."""
    from aegis.train.group import train_group  # needs the extra `trl`

    settings = config.train.group
    adapted, tokenizer, card = _supervised(config, base, supervised)
    model = None
    if reward and settings.weights.reward_model:
        model = load_reward(
            reward, adapted, base_fingerprint=base.fingerprint, settings=config.train.reward
        )
    adapted.to(pick_device())
    say(
        f"{algorithm.upper()}: {settings.updates} updates, {settings.prompts} prompts of {settings.group} responses each"
    )
    logs = train_group(
        algorithm,
        adapted,
        _task(config, adapted, tokenizer, train, settings, supervised=supervised),
        settings,
        tokenizer=tokenizer,
        seed=config.seed,
        clip_norm=config.train.clip_norm,
        reward=model,
        checkpoints=checkpoints,
        on_log=on_log,
    )
    metrics = _write_adapter(
        folder,
        config,
        adapted,
        tokenizer,
        card,
        supervised=supervised,
        validation=validation,
        algorithm=algorithm,
        settings=settings.model_dump(mode="json"),
        logs=logs,
        metrics={
            "updates": len(logs),
            **quarters(logs, "reward", "reward_std", "kl", "entropy", "ended"),
        },
    )
    say(
        f"{algorithm.upper()}: reward {metrics['reward_first']:+.2f} → {metrics['reward_last']:+.2f}"
    )
    return metrics


def _task(
    config: Config,
    adapted: Adapted,
    tokenizer: Any,
    train: Sequence[Record],
    settings: PpoSettings | GroupSettings,
    *,
    supervised: Path,
) -> QuadrupleThinking:
    """The records whose prompts fit, to be answered in quadruple thinking, told what the policy's
    own judge decides."""
    system, limit = config.model.system_prompt, config.train.max_length
    encoded = [
        (record, tuple(prompt_ids(tokenizer, record.prompt, system=system))) for record in train
    ]
    field = "train.ppo.prompt_tokens" if isinstance(settings, PpoSettings) else "train.max_length"
    longest = settings.prompt_tokens if isinstance(settings, PpoSettings) else limit
    room = (
        context_length(adapted.base.config)
        - Limits(settings.section_tokens, settings.final_tokens).total
    )
    asked = [(record, ids) for record, ids in encoded if len(ids) <= min(longest, room)]
    if not asked:
        raise DataError(
            f"{field} is {longest}, the context leaves {room} tokens, no prompt is that short; raise {field}"
        )
    judge = Judge.beside(supervised, adapted.base, tokenizer, adapted.head)
    return QuadrupleThinking(
        adapted, judge, [r for r, _ in asked], [ids for _, ids in asked], settings
    )


def _write_adapter(
    folder: Path,
    config: Config,
    adapted: Adapted,
    tokenizer: Any,
    card: AdapterCard,
    *,
    supervised: Path,
    validation: Sequence[Record],
    algorithm: str,
    settings: dict[str, Any],
    logs: Sequence[dict[str, Any]],
    metrics: dict[str, Any],
) -> dict[str, Any]:
    """Weigh the decision head's two eyes anew and write what every algorithm leaves; return
    `metrics` with validation."""
    system, limit = config.model.system_prompt, config.train.max_length
    fitting = [
        record
        for record in validation
        if len(prompt_ids(tokenizer, record.prompt, system=system)) <= limit
    ]
    shared: dict[str, Any] = {
        "system": system,
        "max_length": limit,
        "section_weight": 0.0,
        "final_weight": 0.0,
    }
    held_out, _ = encode_all(tokenizer, fitting, [], thinking_records=0, seed=config.seed, **shared)
    lexical = LexicalHead.load(supervised)
    if held_out:
        checks, (deep, truth) = validate(
            adapted, held_out, config.train, pad_id=tokenizer.pad_token_id
        )
        prompts = [record.prompt for record in fitting]
        fit(
            deep,
            lexical.logits(prompts) if lexical else None,
            is_spelled(tokenizer, prompts),
            truth,
        ).save(folder)
        metrics = metrics | checks
    training = {**card.training, algorithm: {"settings": settings, "metrics": metrics}}
    save_adapter(folder, adapted, replace(card, training=training))
    for name in (
        LEXICAL_HEAD_FILE,
        "history.jsonl",
        "learning_curve.png",
        "alpha.png",
        EVIDENCE_FILE,
        EVIDENCE_PICTURE,
    ):
        if (supervised / name).exists():
            shutil.copyfile(supervised / name, folder / name)
    history = "".join(json.dumps(log) + "\n" for log in logs)
    (folder / f"{algorithm}_history.jsonl").write_text(history, encoding="utf-8")
    return metrics


def quarters(logs: Sequence[dict[str, Any]], *keys: str) -> dict[str, float]:
    """First and last quarter of a training side by side, for each key that the log has."""
    size = max(1, len(logs) // 4)
    found: dict[str, float] = {}
    for key in keys:
        if all(key in log for log in logs):
            found[f"{key}_first"] = sum(log[key] for log in logs[:size]) / size
            found[f"{key}_last"] = sum(log[key] for log in logs[-size:]) / size
    return found


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
    """The pairs as ids, ending where a sampled response ends; those longer than `train.max_length`
    are left out."""
    found = []
    for pair in pairs:
        _, chosen, rejected = encode_pair(
            tokenizer, pair, system=config.model.system_prompt, end=False
        )
        if max(len(chosen), len(rejected)) <= config.train.max_length:
            found.append(
                EncodedPair(
                    chosen, rejected, distance(pair.chosen.decision, pair.rejected.decision)
                )
            )
    return found


def _examples(
    config: Config,
    tokenizer: Any,
    train: Sequence[Record],
    pairs: Sequence[Pair],
    validation: Sequence[Record],
    others: Sequence[Dataset] = (),
) -> tuple[list[Example], list[Example], int, list[int]]:
    """What to train on, what to validate on, how many were too long, and how many examples are own
    and each dataset's."""
    settings = config.train
    shared: dict[str, Any] = {
        "system": config.model.system_prompt,
        "max_length": settings.max_length,
        "thinking_tokens": settings.thinking_tokens,
        "section_weight": settings.loss.sections,
        "final_weight": settings.loss.final,
        "seed": config.seed,
    }
    examples, dropped = encode_all(
        tokenizer, train, pairs, thinking_records=settings.thinking_records, **shared
    )
    sizes = [len(examples)]
    for dataset in others:
        more, gone = encode_all(
            tokenizer, dataset.records, [], thinking_records=settings.thinking_records, **shared
        )
        examples, dropped, sizes = examples + more, dropped + gone, [*sizes, len(more)]
    held_out, _ = encode_all(tokenizer, validation, [], thinking_records=0, **shared)
    if not examples:
        raise DataError(
            f"train.max_length is {settings.max_length}, and no record is that short; raise it"
        )
    return examples, held_out, dropped, sizes
