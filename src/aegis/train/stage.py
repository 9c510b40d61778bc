"""Stage 3: what goes into `sft/`, `reward/` and `adapter/`."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from aegis import __version__
from aegis.config import GroupSettings, PpoSettings
from aegis.data.mixture import Mixture
from aegis.data.records import Pair, Record, write_jsonl
from aegis.engine.judge import Judge
from aegis.engine.response_grammar import Limits
from aegis.engine.verdict import CalibratedHead
from aegis.errors import DataError
from aegis.model.adapted import attach, freeze_report
from aegis.model.adapter_folder import AdapterCard, save_adapter
from aegis.model.base import context_length
from aegis.model.device import pick_device
from aegis.model.heads import VALUE_HEAD_FILE, ScalarHead
from aegis.model.lexical import LEXICAL_HEAD_FILE, LexicalHead
from aegis.model.prompt import PromptEncoder
from aegis.protocol.decisions import Decision
from aegis.train.distillation import distilled, plainly_answered
from aegis.train.evidence import EVIDENCE_FILE, EVIDENCE_PICTURE, write_evidence
from aegis.train.examples import EncodingSettings, Example, encode_all, mixed
from aegis.train.figures import draw_alpha, draw_learning_curve, draw_ppo, draw_reward
from aegis.train.group import GrpoObjective, RlooObjective
from aegis.train.job import (
    SupervisedModel,
    TrainingData,
    TrainingJob,
    calibrate,
    fitting_records,
    load_tagged,
    place_model,
    prompts_only,
    refit_prompts,
)
from aegis.train.loop import TrainLoop
from aegis.train.policy import history_row
from aegis.train.ppo import PpoObjective
from aegis.train.preference import DpoObjective, encode_preferences
from aegis.train.probe import refit
from aegis.train.reward import RewardModel, load_reward, save_reward, train_reward
from aegis.train.rollout import RolloutCollector
from aegis.train.sft import SupervisedData, train_sft, validate
from aegis.train.task import QuadrupleThinking
from aegis.train.teacher import ask_base, save_answers

_HISTORY = "history.jsonl"
_PLAIN = 24  # records that are answered in plain chat, at least
_SFT_CURVES = ("learning_curve.png", "alpha.png")
_SFT_FILES = (LEXICAL_HEAD_FILE, _HISTORY, *_SFT_CURVES, EVIDENCE_FILE, EVIDENCE_PICTURE)
_RESPONSE_MEASURES = ("reward", "reward_std", "kl", "entropy", "ended")


def write_supervised(
    job: TrainingJob, data: TrainingData, *, origin: dict[str, Any], mixture: Mixture | None = None
) -> None:
    """Train on the records and the pairs' chosen sides; write adapter, history and curves.

    Args:
        origin: `session_id` and `records_sha256`, for the card.
        mixture: what `train.datasets` makes of records and pairs, which it then stands for; None
            without datasets.

    Raises:
        DataError: if no record fits `train.max_length`.
    """
    config, folder = job.config, job.folder
    model, tokenizer, tags = load_tagged(job, dtype=getattr(torch, config.model.dtype))
    if mixture:
        validation = [*data.validation, *mixture.validation]
        own = {"train": mixture.own.records, "pairs": mixture.pairs}
        data = replace(data, validation=validation, **own)
    fitting = fitting_records(job, tokenizer, data.validation)
    data = replace(data, validation=fitting)
    supervised, epoch_size = _supervised_data(job, tokenizer, data, mixture)
    torch.manual_seed(config.seed)
    adapted = place_model(job, attach(model, config.model, tags=tags))
    parameters = freeze_report(adapted)
    job.message(str(parameters))
    result = train_sft(adapted, supervised, config.train, job.loop(tokenizer), job.services)
    training = {
        "aegis_version": __version__,
        "seed": config.seed,
        # The card is published, paths are not.
        "settings": config.train.model_dump(mode="json", exclude={"datasets"}),
        "datasets": mixture.facts if mixture else [],
        "examples": epoch_size,
        "steps": len(result.history),
        "parameters": {**asdict(parameters), "percent": parameters.percent},
        "validation": result.validation,
        "records_sha256": origin["records_sha256"],
    }
    settings = config.model.model_dump(mode="json")
    card = AdapterCard(job.base_facts(), settings, result.alpha, training, origin["session_id"])
    save_adapter(folder, adapted, card)
    lexical = _lexical_head(job, data, mixture) if config.model.lexical else None
    if result.held_out:
        calibrate(job, tokenizer, fitting, lexical, result.held_out)
    write_jsonl(folder / _HISTORY, [log.to_json() for log in result.history])
    draw_learning_curve(folder / "learning_curve.png", result.history, result.validation)
    draw_alpha(folder / "alpha.png", result.history)
    write_evidence(folder, result.history)


def write_answers(job: TrainingJob, records: Sequence[Record]) -> None:
    """Let the base answer harmless prompts of the records in its own chat; write what it says."""
    settings, seed, remember = job.config.train.distillation, job.config.seed, job.services.remember
    job.message(f"{job.base.spec} answers harmless prompts: SFT is to keep what it knows")
    tokenizer, answers = ask_base(job.base, records, settings, seed=seed, remember=remember)
    save_answers(job.folder, tokenizer, answers)
    job.message(f"{len(answers)} of its answers are kept")


def _supervised_data(
    job: TrainingJob, tokenizer: Any, data: TrainingData, mixture: Mixture | None
) -> tuple[SupervisedData, int]:
    """Encode what SFT learns from; return how many examples an epoch has beside it.

    Raises:
        DataError: if that is none.
    """
    settings = EncodingSettings.of(job.config)
    said = {answer.prompt for answer in data.answers}
    own = [  # an answer of ours would speak against the base's
        replace(record, thinking=None) if record.prompt in said else record for record in data.train
    ]
    examples, dropped = encode_all(tokenizer, own, data.pairs, settings)
    shares = [(len(examples), mixture.own.weight)] if mixture else []
    for dataset in mixture.others if mixture else ():
        more, too_long = encode_all(tokenizer, dataset.records, [], settings)
        examples, dropped = examples + more, dropped + too_long
        shares.append((len(more), dataset.weight))
    if more := _plain_chat(job, tokenizer, data, settings):
        shares = [*(shares or [(len(examples), 1.0)]), (len(more), 1.0)]
        examples = examples + more
    if not examples:
        raise DataError(
            f"train.max_length is {job.max_length}, and no record is that short; raise it"
        )
    if shares and not any(round(weight * count) for count, weight in shares):
        raise DataError(
            "train.datasets: round(weight * n) is 0 for every dataset, so that an epoch is empty; "
            "raise a weight"
        )
    epoch = mixed(shares, seed=job.config.seed, epoch=0) if shares else range(len(examples))
    tokens = sum(len(examples[index].ids) for index in epoch)
    job.message(
        f"{len(epoch)} examples, {tokens:,} tokens an epoch, {dropped} left out as longer than "
        "train.max_length"
    )
    validation = prompts_only(job, tokenizer, data.validation)
    refit = refit_prompts(job, tokenizer, _all_records(data, mixture))
    return SupervisedData(examples, validation, shares, refit), len(epoch)


def _all_records(data: TrainingData, mixture: Mixture | None) -> list[Record]:
    others = mixture.others if mixture else ()
    return [*data.train, *(record for dataset in others for record in dataset.records)]


def _plain_chat(
    job: TrainingJob, tokenizer: Any, data: TrainingData, settings: EncodingSettings
) -> list[Example]:
    """Return examples of plain chat: the base's own answers, and declining, too; answers of ours,
    if the base was not asked and the model itself writes its decision."""
    encoder, taught = PromptEncoder(tokenizer, job.system), job.config.train.distillation
    amount = {"weight": taught.weight, "thinking": taught.thinking}
    examples = distilled(encoder, data.answers, data.train, settings, **amount)
    if job.config.model.head == "token" or data.answers:
        allow, most = Decision.ALLOW, max(_PLAIN, len(data.answers) // 2)
        rest = [each for each in data.train if each.decision is not allow or not data.answers]
        examples += plainly_answered(encoder, rest, settings, most=most)
    return examples


def _lexical_head(job: TrainingJob, data: TrainingData, mixture: Mixture | None) -> LexicalHead:
    rows = [(record.prompt, int(record.decision)) for record in _all_records(data, mixture)]
    rows += [(pair.prompt, int(pair.chosen.decision)) for pair in data.pairs]
    prompts, decisions = zip(*rows, strict=True)
    head = LexicalHead.fit(prompts, decisions, strength=job.config.train.lexical_strength)
    head.save(job.folder)
    return head


def write_reward(job: TrainingJob, data: TrainingData, *, supervised: Path) -> None:
    """Train the reward model on top of `supervised`; write it with its metrics and history."""
    config, settings = job.config, job.config.train.reward
    start = SupervisedModel.load(job, supervised)
    start.adapted.add_reward(settings.lora)
    start.adapted.to(pick_device())
    system, longest = job.system, job.max_length
    train, tests = (  # without the end token: a sampled response has none either
        encode_preferences(start.tokenizer, pairs, system=system, max_length=longest, end=False)
        for pairs in (data.pairs, data.held_out)
    )
    if settings.pairs is not None:
        train = random.Random(f"pairs:{config.seed}").sample(train, min(settings.pairs, len(train)))
    job.message(f"reward model: {len(train)} pairs to learn from, {len(tests)} held out")
    loop = job.loop(start.tokenizer)
    model, report, logs = train_reward(start.adapted, train, tests, settings, loop, job.services)
    metrics = {**asdict(report), "steps": len(logs)}
    facts = {"settings": settings.model_dump(mode="json"), "metrics": metrics}
    card = {"base": job.base_facts(), **facts}
    save_reward(job.folder, start.adapted, model, card)
    write_jsonl(job.folder / _HISTORY, [log.to_json() for log in logs])
    draw_reward(job.folder / "learning_curve.png", logs, held_out=report.accuracy)
    accuracy, wins, chosen = (
        "not known" if value is None else f"{value:.3f}"
        for value in (report.accuracy, report.longer_wins, report.longer_chosen)
    )
    job.message(
        f"reward model: accuracy {accuracy} on {report.pairs} held-out pairs, "
        f"longer side wins {wins} (and is the better one in {chosen})"
    )


@dataclass(frozen=True)
class PolicyResult:
    """What an algorithm leaves besides the weights: its history, and what the card says of it."""

    history: list[dict[str, Any]]
    metrics: dict[str, Any]


def write_policy(
    job: TrainingJob, data: TrainingData, *, supervised: Path, reward: Path | None = None
) -> None:
    """Go on from `supervised` by `train.algorithm`; write an adapter folder like its own.

    Args:
        reward: the reward model's folder; None without one.

    Raises:
        DataError: if no pair or no prompt fits `train.max_length`.
    """
    start, algorithm = SupervisedModel.load(job, supervised), job.config.train.algorithm
    if algorithm == "dpo":
        start.adapted.to(pick_device())
        result = _run_dpo(job, start, data.pairs)
    else:
        model = _reward_model(job, start, reward)
        start.adapted.to(pick_device())
        run = _run_ppo if algorithm == "ppo" else _run_group
        result = run(job, start, data.train, model)
    _write_adapter(job, start, data, result)


def _run_ppo(
    job: TrainingJob, start: SupervisedModel, train: Sequence[Record], reward: RewardModel | None
) -> PolicyResult:
    config, settings, adapted = job.config, job.config.train.ppo, start.adapted
    torch.manual_seed(config.seed)
    value = ScalarHead(adapted.head.features).to(adapted.device)
    collector = _collector(job, start, train, settings, reward)
    objective = PpoObjective(collector, value, settings, job.loop(start.tokenizer))
    job.message(
        f"PPO: {settings.updates} updates of {settings.batch} responses; layers below "
        f"{collector.layer} of {adapted.depth} are computed once for policy, reference, value and "
        "reward"
    )
    TrainLoop(objective, objective.loop, job.services).run()
    logs = objective.updates
    metrics = {"updates": len(logs), **quarters(logs, *_RESPONSE_MEASURES)}
    value.save(job.folder / VALUE_HEAD_FILE)
    draw_ppo(job.folder / "ppo.png", logs)
    rise = f"{metrics['reward_first']:+.2f} → {metrics['reward_last']:+.2f}"
    job.message(f"PPO: reward {rise}, KL {metrics['kl_last']:.2f} nats a response")
    return PolicyResult(logs, metrics)


def _run_dpo(job: TrainingJob, start: SupervisedModel, pairs: Sequence[Pair]) -> PolicyResult:
    tokenizer, loop = start.tokenizer, job.loop(start.tokenizer)
    encoded = encode_preferences(tokenizer, pairs, system=job.system, max_length=job.max_length)
    left_out = len(pairs) - len(encoded)
    job.message(f"DPO: {len(encoded)} pairs, {left_out} left out as longer than train.max_length")
    objective = DpoObjective(start.adapted, encoded, job.config.train.dpo, loop)
    logs = [history_row(log) for log in TrainLoop(objective, loop, job.services).run()]
    keys = ("loss", "rewards/margins", "rewards/accuracies")
    metrics = {"steps": len(logs), **quarters(logs, *keys)}
    margins = f"{metrics['rewards/margins_first']:+.2f} → {metrics['rewards/margins_last']:+.2f}"
    accuracy = metrics["rewards/accuracies_last"]
    job.message(f"DPO: margin of the chosen side {margins}, accuracy {accuracy:.2f}")
    return PolicyResult(logs, metrics)


def _run_group(
    job: TrainingJob, start: SupervisedModel, train: Sequence[Record], reward: RewardModel | None
) -> PolicyResult:
    settings, loop = job.config.train.group, job.loop(start.tokenizer)
    kind = GrpoObjective if job.config.train.algorithm == "grpo" else RlooObjective
    objective = kind(_collector(job, start, train, settings, reward), settings, loop)
    name = objective.label
    job.message(
        f"{name}: {settings.updates} updates, {settings.prompts} prompts of {settings.group} "
        "responses each"
    )
    logs = [history_row(log) for log in TrainLoop(objective, loop, job.services).run()]
    metrics = {"updates": len(logs), **quarters(logs, *_RESPONSE_MEASURES)}
    job.message(f"{name}: reward {metrics['reward_first']:+.2f} → {metrics['reward_last']:+.2f}")
    return PolicyResult(logs, metrics)


def _reward_model(
    job: TrainingJob, start: SupervisedModel, folder: Path | None
) -> RewardModel | None:
    train = job.config.train
    weights = (train.ppo if train.algorithm == "ppo" else train.group).weights
    if not (folder and weights.reward_model):
        return None
    fingerprint = job.base.fingerprint
    return load_reward(folder, start.adapted, base_fingerprint=fingerprint, settings=train.reward)


def _collector(
    job: TrainingJob,
    start: SupervisedModel,
    train: Sequence[Record],
    settings: PpoSettings | GroupSettings,
    reward: RewardModel | None,
) -> RolloutCollector:
    """Return what samples responses to the records whose prompts fit."""
    adapted, tokenizer = start.adapted, start.tokenizer
    encoder = PromptEncoder(tokenizer, job.system)
    encoded = [(record, tuple(encoder.ids(record.prompt))) for record in train]
    field, longest = "train.max_length", job.max_length
    if isinstance(settings, PpoSettings):
        field, longest = "train.ppo.prompt_tokens", settings.prompt_tokens
    response = Limits(settings.section_tokens, settings.final_tokens).total
    room = context_length(adapted.base.config) - response
    asked = [(record, ids) for record, ids in encoded if len(ids) <= min(longest, room)]
    if not asked:
        raise DataError(
            f"{field} is {longest}, the context leaves {room} tokens, no prompt is that short; "
            f"raise {field}"
        )
    judge = Judge(adapted.base, tokenizer, CalibratedHead.load(start.folder, adapted.head))
    records, prompts = zip(*asked, strict=True)
    task = QuadrupleThinking(adapted, judge, records, prompts, settings)
    return RolloutCollector(adapted, task, settings, pad_id=tokenizer.pad_token_id, reward=reward)


def _write_adapter(
    job: TrainingJob, start: SupervisedModel, data: TrainingData, result: PolicyResult
) -> None:
    """Fit and calibrate the decision head anew and write what every algorithm leaves."""
    config, folder, tokenizer = job.config, job.folder, start.tokenizer
    named = {"pad_id": tokenizer.pad_token_id, "remember": job.services.remember}
    encoder, encoding = PromptEncoder(tokenizer, job.system), EncodingSettings.of(config)
    speaks = data.train if config.model.head == "token" else ()  # a pooled head keeps off nothing
    spoken = plainly_answered(encoder, speaks, encoding, most=_PLAIN)
    prompts = refit_prompts(job, tokenizer, data.train)
    refit(start.adapted, prompts, config.train, **named, spoken=spoken)
    fitting, metrics = fitting_records(job, tokenizer, data.validation), result.metrics
    if prompts := prompts_only(job, tokenizer, fitting):
        checks, held_out = validate(
            start.adapted, prompts, config.train, pad_id=tokenizer.pad_token_id
        )
        calibrate(job, tokenizer, fitting, LexicalHead.load(start.folder), held_out)
        metrics = metrics | checks
    algorithm, train = config.train.algorithm, config.train
    settings = {"ppo": train.ppo, "dpo": train.dpo}.get(algorithm, train.group)
    facts = {"settings": settings.model_dump(mode="json"), "metrics": metrics}
    card = replace(start.card, training={**start.card.training, algorithm: facts})
    save_adapter(folder, start.adapted, card)
    for name in _SFT_FILES:
        if (start.folder / name).exists():
            shutil.copyfile(start.folder / name, folder / name)
    history = "".join(json.dumps(log) + "\n" for log in result.history)
    (folder / f"{algorithm}_history.jsonl").write_text(history, encoding="utf-8")


def quarters(logs: Sequence[dict[str, Any]], *keys: str) -> dict[str, float]:
    """Return each key's mean over the first and the last quarter, if every log has the key."""
    size = max(1, len(logs) // 4)
    means: dict[str, float] = {}
    for key in keys:
        if all(key in log for log in logs):
            means[f"{key}_first"] = sum(log[key] for log in logs[:size]) / size
            means[f"{key}_last"] = sum(log[key] for log in logs[-size:]) / size
    return means
