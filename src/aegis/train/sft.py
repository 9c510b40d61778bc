"""Supervised fine-tuning on quadruple thinking, with the decision loss beside it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aegis.config import TrainSettings
from aegis.model.adapted import Adapted, parameters_by_kind
from aegis.model.chunks import in_chunks
from aegis.model.device import autocast
from aegis.model.prompt import by_length
from aegis.protocol.decisions import NAMES, UNSAFE, Decision
from aegis.runs.events import Metrics
from aegis.runs.reporter import bar
from aegis.so8 import Schedule, So8Loss, So8LossSettings, alpha_at, opening
from aegis.so8.losses import summed
from aegis.storage.journal import Remember, compute_anew
from aegis.train.examples import (
    Batch,
    Example,
    collate,
    epoch_batches,
    mixed,
    prompts_of,
    to_device,
)
from aegis.train.loop import Loss, Objective, StepLog, TrainLoop, cosine_share, detached
from aegis.train.probe import probe, refit
from aegis.train.services import LoopSettings, TrainServices
from aegis.train.state import ModuleState, Part, Values


@dataclass(frozen=True)
class SupervisedData:
    """What SFT learns from.

    Args:
        validation: read after each epoch, at `train.checks` and at the end; empty for none.
        shares: (n, weight) of the datasets that `examples` are of, in order; empty for one dataset
            of weight 1.
        refit: whose prompts the decision head is fitted on when all else is trained.
    """

    examples: Sequence[Example]
    validation: Sequence[Example] = ()
    shares: Sequence[tuple[int, float]] = ()
    refit: Sequence[Example] = ()


@dataclass(frozen=True)
class SupervisedResult:
    """What SFT leaves besides the weights.

    Args:
        history: every step.
        validation: loss and accuracy after each epoch and at `train.checks`.
        alpha: where the gates ended.
        held_out: (n, 4) decision logits of the validation prompts with the final weights, and their
            (n,) decisions.
    """

    history: list[StepLog]
    validation: list[dict[str, float]]
    alpha: float
    held_out: tuple[np.ndarray, np.ndarray] | None


def train_sft(
    adapted: Adapted,
    data: SupervisedData,
    settings: TrainSettings,
    loop: LoopSettings,
    services: TrainServices | None = None,
) -> SupervisedResult:
    """Train LoRA, gates and decision head in place; the gates end at the schedule's last α.

    Raises:
        StoppedError: if a stop was asked for; everything up to the last step is saved.
    """
    services = services or TrainServices()
    objective = SupervisedObjective(adapted, data, settings, loop, services.remember)
    adapted.train()
    logs = TrainLoop(objective, loop, services).run()
    if not learns_alpha(adapted):
        adapted.set_alpha(alpha_at(objective.schedule, objective.steps))
    alpha = settings.anneal.end
    if adapted.gate_names:
        alpha = float(adapted.all_gates()[0].alpha.detach())
    named = {"pad_id": loop.pad_id, "remember": services.remember}
    refit(adapted, data.refit, settings, **named, spoken=data.examples)
    held_out = None
    if data.validation:
        check, held_out = validate(adapted, data.validation, settings, pad_id=loop.pad_id)
        services.reporter.emit(objective.checked(objective.steps, check))
    adapted.eval()
    return SupervisedResult(logs, objective.checks, alpha, held_out)


class SupervisedObjective(Objective[Batch]):
    """Decision loss plus weighted token loss plus the SO(8) terms.

    Every record counts the same whatever batch it falls into: sums are divided by the plan's mean,
    not by the batch's own size, so that a batch of three long dialogues does not outweigh one of
    twenty short prompts.
    """

    name, label = "sft", "training"
    remedy = "Lower train.lr, or set model.dtype: float32,"

    def __init__(
        self,
        adapted: Adapted,
        data: SupervisedData,
        settings: TrainSettings,
        loop: LoopSettings,
        remember: Remember = compute_anew,
    ) -> None:
        self.remember = remember
        self.adapted, self.data, self.settings, self.loop = adapted, data, settings, loop
        self.plan, self.epoch_ends = make_plan(
            data.examples, settings, seed=loop.seed, shares=data.shares
        )
        self.steps = len(self.plan)
        spread = settings.checks + 1
        self.check_steps = {round(self.steps * part / spread) for part in range(1, spread)}
        self.check_steps.update(self.epoch_ends)
        count = min(len(data.validation), settings.check_records or len(data.validation))
        drawn = random.Random(f"checks:{loop.seed}")
        self.some_validation = drawn.sample(list(data.validation), count)
        self.optimizer = make_optimizer(adapted, settings)
        self.schedule = make_schedule(settings, steps=self.steps)
        self.checks: list[dict[str, float]] = []
        loss = settings.loss
        self.so8 = So8Loss(
            So8LossSettings(
                pet=loss.pet, nu_orth=loss.nu_orth, mu_norm=loss.mu_norm, rho_iso=loss.rho_iso
            )
        )
        self.records_a_step = sum(map(len, self.plan)) / self.steps
        weights = [sum(sum(data.examples[i].weights) for i in batch) for batch in self.plan]
        self.weight_a_step = sum(weights) / max(1, sum(weight > 0 for weight in weights))

    def parts(self) -> dict[str, Part]:
        return {
            "adapted": ModuleState(self.adapted, buffers_of=("gates", "head")),
            "validation": Values(lambda: self.checks, self._set_checks),
        }

    def begin(self) -> None:
        examples, named = self.data.examples, {"pad_id": self.loop.pad_id, "seed": self.loop.seed}
        probe(self.adapted, examples, self.settings, **named, remember=self.remember)
        self.adapted.train()

    def rate(self, step: int) -> float:
        return cosine_share(step, self.steps, warmup=self.settings.warmup)

    def prepare(self, step: int, on_token: Callable[[], None]) -> dict[str, float]:
        if learns_alpha(self.adapted):
            return {}
        alpha = alpha_at(self.schedule, step)
        self.adapted.set_alpha(alpha)
        return {"alpha": alpha, "g": opening(alpha)}

    def batches(self, step: int) -> Sequence[Batch]:
        device, examples = self.adapted.device, self.data.examples
        return [
            to_device(collate([examples[i] for i in part], pad_id=self.loop.pad_id), device)
            for part in self._batches(step)
        ]

    def _batches(self, step: int) -> list[list[int]]:
        """Return a step's examples as batches that go through the model one by one."""
        indices, train = self.plan[step], self.settings
        if train.gradient_accumulation == 1:
            return [indices]
        lengths = [len(self.data.examples[index].ids) for index in indices]
        parts = by_length(lengths, batch_tokens=train.batch_tokens)
        return [[indices[place] for place in part] for part in parts]

    def loss(self, batch: Batch, step: int) -> Loss:
        settings, device = self.settings.loss, batch.ids.device
        with autocast(self.settings.autocast, device):
            hidden = self.adapted.hidden(batch.ids, batch.mask)
        logits = self.adapted.decide(hidden, batch.prompt_mask) / settings.temperature
        decision = functional.cross_entropy(
            logits,
            batch.decisions,
            reduction="sum",
            label_smoothing=settings.label_smoothing,
        )
        parts = {"decision": decision / self.records_a_step}
        task = settings.decision * parts["decision"]
        if settings.safety:
            parts["safety"] = missed(logits, batch.decisions) / self.records_a_step
            task = task + settings.safety * parts["safety"]
        if batch.weights.any():
            with autocast(self.settings.autocast, device):
                parts["tokens"] = token_loss(self.adapted, hidden, batch) / self.weight_a_step
            task = task + parts["tokens"]
        terms = self.so8.terms(
            task,
            progress=step / self.steps,
            gates=self.adapted.all_gates(),
            hidden=hidden,
            mask=batch.mask,
        )
        shared = {name: term for name, term in terms.items() if name != "task"}
        count = len(self._batches(step))  # they are of the step, whatever its batches
        terms |= {name: term / count for name, term in shared.items()}
        parts |= shared
        return Loss(summed(terms), detached(parts), batch.mask.sum())

    def finish(self, step: int, log: StepLog | None) -> Iterable[Metrics]:
        yield from super().finish(step, log)
        done, some = step + 1, self.some_validation
        if some and done in self.check_steps and done < self.steps:
            check, _ = validate(self.adapted, some, self.settings, pad_id=self.loop.pad_id)
            yield self.checked(done, check)

    def checked(self, done: int, check: dict[str, float]) -> Metrics:
        """Keep what validation measured after so many steps, and return it as an event."""
        self.checks.append({"step": done, **check})
        return self._check_metrics(self.checks[-1])

    def history(self, logs: Sequence[StepLog]) -> list[Metrics]:
        rows = [*super().history(logs), *map(self._check_metrics, self.checks)]
        return sorted(rows, key=lambda row: row.step)

    def samples(self, step: int) -> int:
        return len(self.plan[step])

    def note(self, log: StepLog | None) -> str:
        if not log:
            return ""
        alpha = f" α {log.extra['alpha']:+.2f}" if "alpha" in log.extra else ""
        return f"loss {log.loss:.3f}{alpha} {log.tokens / log.seconds:.0f} tokens/s"

    def _check_metrics(self, check: dict[str, float]) -> Metrics:
        values = {name: value for name, value in check.items() if name != "step"}
        return Metrics(training=self.name, step=int(check["step"]), steps=self.steps, values=values)

    def _set_checks(self, rows: list[dict[str, float]]) -> None:
        self.checks[:] = rows


def missed(logits: Tensor, decisions: Tensor) -> Tensor:
    """Sum −log P(not ALLOW) over the (batch,) decisions that are DENY or REFUSE."""
    unsafe = torch.isin(decisions, torch.tensor(sorted(UNSAFE), device=decisions.device))
    others = [each for each in Decision if each is not Decision.ALLOW]
    chances = torch.log_softmax(logits, -1)[:, others].logsumexp(-1)
    return -chances[unsafe].sum()


def learns_alpha(adapted: Adapted) -> bool:
    """Return whether α is a parameter that the optimizer moves, not the schedule."""
    return any(gate.alpha.requires_grad for gate in adapted.all_gates())


def make_plan(
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    seed: int,
    shares: Sequence[tuple[int, float]] = (),
) -> tuple[list[list[int]], list[int]]:
    """Return the examples of every step, and the steps at which the epochs end, in order.

    Args:
        shares: as in `SupervisedData`.
    """
    plan: list[list[int]] = []
    ends: list[int] = []
    for epoch in range(math.ceil(settings.epochs)):
        chosen = mixed(shares, seed=seed, epoch=epoch) if shares else None
        batches = epoch_batches(
            examples,
            batch_tokens=settings.batch_tokens * settings.gradient_accumulation,
            seed=seed,
            epoch=epoch,
            chosen=chosen,
        )
        share = min(1.0, settings.epochs - epoch)
        plan += batches[: max(1, round(share * len(batches)))]
        ends.append(len(plan))
    return plan, ends


def make_optimizer(adapted: Adapted, settings: TrainSettings) -> torch.optim.AdamW:
    """Build AdamW with a learning rate a kind; decay would pull gates and tags shut, so none."""
    rates = {
        "lora": settings.lr,
        "gates": settings.gate_lr,
        "tags": settings.tag_lr,
        "decision_head": settings.head_lr,
    }
    kinds, undecayed = parameters_by_kind(adapted), ("gates", "tags")
    decay = {kind: 0.0 if kind in undecayed else settings.weight_decay for kind in rates}
    groups = [
        {"params": kinds[kind], "lr": rate, "weight_decay": decay[kind]}
        for kind, rate in rates.items()
        if kinds[kind]
    ]
    return torch.optim.AdamW(groups)


def make_schedule(settings: TrainSettings, *, steps: int) -> Schedule:
    """Return the α schedule in steps."""
    anneal = settings.anneal
    warmup = round(anneal.warmup * steps)
    return Schedule(
        annealing_steps=min(round(anneal.annealing * steps), steps - warmup),
        warmup_steps=warmup,
        shape=anneal.shape,
        start=anneal.start,
        end=anneal.end,
        steepness=anneal.steepness,
    )


def token_loss(adapted: Adapted, hidden: Tensor, batch: Batch) -> Tensor:
    """Sum weight · −log p(token | before), or the cross entropy to the base's own chances where it
    teaches; logits are computed only where the weight is not 0, and of a chunk of places at a time.
    """
    weights, taught, states = batch.weights[:, 1:], batch.taught[:, 1:], hidden[:, :-1]
    written = (weights > 0) & ~taught

    def follow_record(before: Tensor, targets: Tensor) -> tuple[Tensor]:
        logits = adapted.logits(before).float()
        return (functional.cross_entropy(logits, targets, reduction="none"),)

    def follow_base(before: Tensor, words: Tensor, log_chances: Tensor) -> tuple[Tensor]:
        logs = torch.log_softmax(adapted.logits(before).float(), -1).gather(-1, words)
        chances = log_chances.exp()
        others = (1 - chances.sum(-1)).clamp(min=0)  # all words beyond the kept ones, as one
        left = (1 - logs.exp().sum(-1)).clamp(min=1e-6)
        return (-(chances * logs).sum(-1) - others * left.log(),)

    total = weights.new_zeros(())
    if written.any():
        (losses,) = in_chunks(follow_record, states[written], batch.ids[:, 1:][written])
        total = total + (losses * weights[written]).sum()
    if taught.any():
        (losses,) = in_chunks(follow_base, states[taught], batch.words, batch.log_chances)
        total = total + (losses * weights[taught]).sum()
    return total


@torch.no_grad()
def validate(
    adapted: Adapted, examples: Sequence[Example], settings: TrainSettings, *, pad_id: int
) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray]]:
    """Measure decision loss and accuracy over prompts, with the gates as they are now.

    Returns:
        The two by name; (n, 4) logits and (n,) decisions beside.
    """
    prompts = prompts_of(examples)
    adapted.eval()
    logits = torch.zeros(len(prompts), len(NAMES))
    plan = epoch_batches(prompts, batch_tokens=2 * settings.batch_tokens, seed=0, epoch=0)
    with bar("validating", len(prompts), stoppable=False) as advance:
        for indices in plan:
            batch = collate([prompts[index] for index in indices], pad_id=pad_id)
            batch = to_device(batch, adapted.device)
            with autocast(settings.autocast, batch.ids.device):
                hidden = adapted.hidden(batch.ids, batch.mask)
            logits[indices] = adapted.decide(hidden, batch.prompt_mask).cpu()
            advance(len(indices))
    adapted.train()
    truth = torch.tensor([example.decision for example in prompts])
    right = (logits.argmax(-1) == truth).float().mean()
    check = {
        "validation_loss": float(functional.cross_entropy(logits, truth)),
        "validation_accuracy": float(right),
    }
    return check, (logits.numpy(), truth.numpy())
