"""Supervised fine-tuning on quadruple thinking, with the decision loss beside it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import get_cosine_schedule_with_warmup

from aegis.config import TrainSettings
from aegis.model.adapted import Adapted, parameters_by_kind
from aegis.model.device import autocast
from aegis.protocol.decisions import NAMES
from aegis.runs.reporter import bar
from aegis.so8 import Schedule, So8Loss, So8LossSettings, alpha_at, opening
from aegis.train.examples import (
    Batch,
    Example,
    collate,
    epoch_batches,
    mixed,
    prompts_of,
    to_device,
)
from aegis.train.loop import Loss, StepLog, fit
from aegis.train.probe import probe
from aegis.train.snapshot_policy import SnapshotPolicy
from aegis.train.state import ModuleState, OptimizerState, Part, RandomState, SchedulerState, Values
from aegis.train.tracking import Tracker, step_scalars


@dataclass(frozen=True)
class Trained:
    """What SFT leaves besides the weights.

    Args:
        history: every step.
        validation: loss and accuracy after each epoch.
        alpha: where the gates ended.
        held_out: (n, 4) decision logits of the validation prompts with the final weights, and their
            (n,) decisions.
    """

    history: list[StepLog]
    validation: list[dict[str, float]]
    alpha: float
    held_out: tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class Progress:
    """One finished step among all: `epoch` from 1, `samples` in this step."""

    log: StepLog
    steps: int
    epoch: int
    samples: int


OnStep = Callable[[Progress], None]


def train_sft(
    adapted: Adapted,
    examples: Sequence[Example],
    validation: Sequence[Example],
    settings: TrainSettings,
    *,
    pad_id: int,
    seed: int,
    shares: Sequence[tuple[int, float]] = (),
    checkpoints: SnapshotPolicy | None = None,
    tracker: Tracker | None = None,
    on_step: OnStep = lambda _: None,
) -> Trained:
    """Train LoRA, gates and decision head in place; the gates end at the schedule's last α.

    Args:
        shares: (n, weight) of the datasets that `examples` are of, in order; empty for one dataset
            of weight 1.
        checkpoints: where to take up an unfinished training and to save this one; None for neither.
        tracker: gets every step's scalars, and what validation finds.
        on_step: told of every step, for the progress log.

    Raises:
        StoppedError: if a stop was asked for; everything up to the last step is saved.
    """
    plan, epoch_ends = make_plan(examples, settings, seed=seed, shares=shares)
    tracker = tracker or Tracker()
    optimizer = make_optimizer(adapted, settings)
    scheduler = get_cosine_schedule_with_warmup(
        optimizer, round(settings.warmup * len(plan)), len(plan)
    )
    schedule = make_schedule(settings, steps=len(plan))
    objective = Objective(adapted, examples, plan, settings, pad_id=pad_id)
    logs: list[StepLog] = []
    checks: list[dict[str, float]] = []
    parts: dict[str, Part] = {
        "adapted": ModuleState(adapted, buffers_of=("gates", "head")),
        "optimizer": OptimizerState(optimizer),
        "scheduler": SchedulerState(scheduler),
        "random": RandomState(),
        "steps": Values(
            lambda: [vars(log) for log in logs],
            lambda rows: _refill(logs, [StepLog(**row) for row in rows]),
        ),
        "validation": Values(lambda: checks, lambda rows: _refill(checks, rows)),
    }
    if checkpoints is None or checkpoints.restore(parts) is None:
        torch.manual_seed(seed)
        probe(adapted, examples, settings, pad_id=pad_id, seed=seed)
        if checkpoints:
            checkpoints.begin(parts)
    tracker.begin(
        len(logs), [*((log.step, step_scalars(log)) for log in logs), *map(_check_scalars, checks)]
    )
    adapted.train()

    with bar("training", len(plan), done=len(logs), stoppable=False) as advance:

        def begin(step: int) -> dict[str, float]:
            alpha = alpha_at(schedule, step)
            if learns_alpha(adapted):
                return {}
            adapted.set_alpha(alpha)
            return {"alpha": alpha, "g": opening(alpha)}

        def end(log: StepLog) -> None:
            alpha = f" α {log.extra['alpha']:+.2f}" if "alpha" in log.extra else ""
            advance(note=f"loss {log.loss:.3f}{alpha} {log.tokens / log.seconds:.0f} tokens/s")
            epoch, last = bisect_left(epoch_ends, log.step) + 1, log.step == len(plan)
            tracker.write(log.step, step_scalars(log))
            on_step(Progress(log, steps=len(plan), epoch=epoch, samples=len(plan[log.step - 1])))
            ended = epoch if log.step in epoch_ends else None
            if ended and not last and validation:
                checks.append(
                    {"step": log.step, **validate(adapted, validation, settings, pad_id=pad_id)[0]}
                )
                tracker.write(*_check_scalars(checks[-1]))
            if checkpoints:
                checkpoints.step_done(log.step, parts, epoch=ended, last=last)

        fit(
            plan,
            objective,
            optimizer=optimizer,
            scheduler=scheduler,
            clip_norm=settings.clip_norm,
            on_begin=begin,
            on_end=end,
            logs=logs,
        )
    if not learns_alpha(adapted):
        adapted.set_alpha(alpha_at(schedule, len(plan)))
    alpha = float(adapted.all_gates()[0].alpha.detach()) if adapted.gate_names else schedule.end
    held_out = None
    if validation:
        found, held_out = validate(adapted, validation, settings, pad_id=pad_id)
        checks.append({"step": len(plan), **found})
        tracker.write(*_check_scalars(checks[-1]))
    adapted.eval()
    return Trained(logs, checks, alpha, held_out)


def _check_scalars(check: dict[str, float]) -> tuple[int, dict[str, float]]:
    return int(check["step"]), {name: value for name, value in check.items() if name != "step"}


def _refill(target: list[Any], rows: Sequence[Any]) -> None:
    target[:] = rows


def learns_alpha(adapted: Adapted) -> bool:
    """True if α is a parameter that the optimizer moves, not the schedule."""
    return any(gate.alpha.requires_grad for gate in adapted.all_gates())


def make_plan(
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    seed: int,
    shares: Sequence[tuple[int, float]] = (),
) -> tuple[list[list[int]], list[int]]:
    """Every batch of the whole training, and the steps at which its epochs end, in order (the last
    step always).

    Args:
        shares: (n, weight) of the datasets that `examples` are of, in order; empty for one dataset
            of weight 1.
    """
    plan: list[list[int]] = []
    ends: list[int] = []
    for epoch in range(math.ceil(settings.epochs)):
        chosen = mixed(shares, seed=seed, epoch=epoch) if shares else None
        batches = epoch_batches(
            examples, batch_tokens=settings.batch_tokens, seed=seed, epoch=epoch, chosen=chosen
        )
        share = min(1.0, settings.epochs - epoch)
        plan += batches[: max(1, round(share * len(batches)))]
        ends.append(len(plan))
    return plan, ends


def make_optimizer(adapted: Adapted, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with a learning rate a kind; gates and tags are not decayed, for decay would pull them
    shut."""
    kinds = parameters_by_kind(adapted)
    rates = {
        "lora": settings.lr,
        "gates": settings.gate_lr,
        "tags": settings.tag_lr,
        "decision_head": settings.head_lr,
    }
    groups = [
        {
            "params": kinds[kind],
            "lr": rate,
            "weight_decay": 0.0 if kind in ("gates", "tags") else settings.weight_decay,
        }
        for kind, rate in rates.items()
        if kinds[kind]
    ]
    return torch.optim.AdamW(groups)


def make_schedule(settings: TrainSettings, *, steps: int) -> Schedule:
    """The α schedule in steps."""
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


class Objective:
    """Decision loss plus weighted token loss plus the SO(8) terms, for one batch of the plan.

    Every record counts the same whatever batch it falls into: sums are divided by the plan's mean,
    not by the batch's own size, so that a batch of three long dialogues does not outweigh one of
    twenty short prompts.
    """

    def __init__(
        self,
        adapted: Adapted,
        examples: Sequence[Example],
        plan: Sequence[list[int]],
        settings: TrainSettings,
        *,
        pad_id: int,
    ) -> None:
        self.adapted, self.examples, self.settings, self.pad_id = (
            adapted,
            examples,
            settings,
            pad_id,
        )
        self.steps = len(plan)
        loss = settings.loss
        self.so8 = So8Loss(
            So8LossSettings(
                pet=loss.pet, nu_orth=loss.nu_orth, mu_norm=loss.mu_norm, rho_iso=loss.rho_iso
            )
        )
        self.records_a_step = sum(map(len, plan)) / len(plan)
        weights = [sum(sum(examples[index].weights) for index in batch) for batch in plan]
        self.weight_a_step = sum(weights) / max(1, sum(weight > 0 for weight in weights))

    def __call__(self, indices: list[int], step: int) -> Loss:
        batch = collate([self.examples[index] for index in indices], pad_id=self.pad_id)
        batch = to_device(batch, self.adapted.device)
        with autocast(self.settings.autocast, batch.ids.device):
            hidden = self.adapted.hidden(batch.ids, batch.mask)
        loss = self.settings.loss
        logits = self.adapted.decide(hidden, batch.prompt_mask)
        decision = functional.cross_entropy(
            logits, batch.decisions, reduction="sum", label_smoothing=loss.label_smoothing
        )
        decision = decision / self.records_a_step
        parts = {"decision": float(decision.detach())}
        task = loss.decision * decision
        if batch.weights.any():
            with autocast(self.settings.autocast, batch.ids.device):
                tokens = token_loss(self.adapted, hidden, batch) / self.weight_a_step
            parts["tokens"] = float(tokens.detach())
            task = task + tokens
        total, terms = self.so8(
            task,
            progress=step / self.steps,
            gates=self.adapted.all_gates(),
            hidden=hidden,
            mask=batch.mask,
        )
        return Loss(
            total,
            parts | {name: value for name, value in terms.items() if name != "task"},
            batch.tokens,
        )


def token_loss(adapted: Adapted, hidden: Tensor, batch: Batch) -> Tensor:
    """Σ weight · −log p(token | before), with logits computed only where the weight is not zero."""
    weights = batch.weights[:, 1:]
    wanted = weights > 0
    logits = adapted.logits(hidden[:, :-1][wanted])
    losses = functional.cross_entropy(logits.float(), batch.ids[:, 1:][wanted], reduction="none")
    return (losses * weights[wanted]).sum()


@torch.no_grad()
def validate(
    adapted: Adapted, examples: Sequence[Example], settings: TrainSettings, *, pad_id: int
) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray]]:
    """Decision loss and accuracy over prompts, with the gates as they are now; (n, 4) logits and
    (n,) decisions beside."""
    prompts = prompts_of(examples)
    adapted.eval()
    logits = torch.zeros(len(prompts), len(NAMES))
    with bar("validating", len(prompts)) as advance:
        for indices in epoch_batches(
            prompts, batch_tokens=2 * settings.batch_tokens, seed=0, epoch=0
        ):
            batch = to_device(
                collate([prompts[index] for index in indices], pad_id=pad_id), adapted.device
            )
            with autocast(settings.autocast, batch.ids.device):
                hidden = adapted.hidden(batch.ids, batch.mask)
            logits[indices] = adapted.decide(hidden, batch.prompt_mask).cpu()
            advance(len(indices))
    adapted.train()
    truth = torch.tensor([example.decision for example in prompts])
    loss, accuracy = (
        functional.cross_entropy(logits, truth),
        (logits.argmax(-1) == truth).float().mean(),
    )
    found = {"validation_loss": float(loss), "validation_accuracy": float(accuracy)}
    return found, (logits.numpy(), truth.numpy())
