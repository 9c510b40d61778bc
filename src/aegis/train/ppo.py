"""Proximal policy optimization over LoRA and gates, on one frozen base.

What is asked and how it is rewarded is a `Task`; `train/task.py` has the one for quadruple
thinking.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from aegis.config import PpoSettings
from aegis.engine.response_sampler import SampledResponse
from aegis.model.heads import ScalarHead
from aegis.model.trunk import Trunk
from aegis.runs.events import Metrics
from aegis.train.advantages import (
    AdaptiveKL,
    explained_variance,
    generalized_advantages,
    kl_estimate,
    leave_one_out,
    masked_mean,
    masked_whiten,
    policy_loss,
    value_loss,
)
from aegis.train.examples import prompt_plan
from aegis.train.loop import Loss, Objective, StepLog, detached
from aegis.train.policy import drift, policy_groups, train_policy_only
from aegis.train.rollout import Collected, Rollout, RolloutBatch, RolloutCollector
from aegis.train.services import LoopSettings
from aegis.train.state import Content, ModuleState, Part, Values


class PpoObjective(Objective[RolloutBatch]):
    """Clipped policy and value loss on an update's responses, several steps an update.

    Args:
        value: the value head, trained along.
    """

    name, label, remedy = "ppo", "PPO", "Lower train.ppo.lr"

    def __init__(
        self,
        collector: RolloutCollector,
        value: ScalarHead,
        settings: PpoSettings,
        loop: LoopSettings,
    ) -> None:
        self.collector, self.value, self.settings, self.loop = collector, value, settings, loop
        self.adapted = collector.adapted
        train_policy_only(self.adapted)
        groups = policy_groups(self.adapted, lr=settings.lr, gate_lr=settings.gate_lr)
        parameters = list(value.parameters())
        groups.append({"params": parameters, "lr": settings.value_lr, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups)
        self.steps_an_update = settings.minibatches * settings.epochs
        self.steps = settings.updates * self.steps_an_update
        asked, kinds = settings.batch // settings.responses, collector.task.kinds
        self.plan = prompt_plan(kinds, updates=settings.updates, asked=asked, seed=loop.seed)
        self.kl = AdaptiveKL(settings.kl, target=settings.kl_target)
        self.updates: list[dict[str, Any]] = []
        self.rollout: Rollout | None = None
        self.trunk: Trunk | None = None
        self.facts: dict[str, float] = {}
        self.measured: list[dict[str, float]] = []

    def parts(self) -> dict[str, Part]:
        return {
            "adapted": ModuleState(self.adapted, buffers_of=("head",)),
            "value": ModuleState(self.value),
            "rollout": _RolloutState(self),
            "kl": Values(lambda: self.kl.coefficient, self._set_coefficient),
            "updates": Values(lambda: self.updates, self._set_updates),
        }

    def rate(self, step: int) -> float:
        """Return the share: a rise over `warmup`, a fall over `decay`."""
        shares = (self.settings.warmup, self.settings.decay)
        rise, fall = (max(1.0, share * self.steps) for share in shares)
        return min(1.0, (step + 1) / rise, (self.steps - step) / fall)

    def prepare(self, step: int, on_token: Callable[[], None]) -> dict[str, float]:
        if self.rollout is None:
            self.collect(step // self.steps_an_update, on_token)
        return {}

    @torch.no_grad()
    def collect(self, update: int, on_token: Callable[[], None]) -> None:
        """Sample and reward an update's responses; compute advantages and returns."""
        settings, indices = self.settings, self.indices(update)
        collected = self.collector.collect(indices, on_token)
        rollout, real = collected.rollout, collected.rollout.real
        rollout.values = self.values(collected.hidden, rollout)
        estimator = settings.kl_estimator
        kl = kl_estimate(rollout.logprobs, rollout.reference, estimator=estimator) * real
        rewards = -self.kl.coefficient * kl
        self._add_rewards(rewards, indices, collected)
        if settings.whiten_rewards:
            rewards = masked_whiten(rewards, real, keep_mean=True)
        rollout.advantages, rollout.returns = generalized_advantages(
            rewards, rollout.values, real, gamma=settings.gamma, lam=settings.lam
        )
        explained = explained_variance(rollout.values, rollout.returns, real)
        if settings.whiten_advantages:
            rollout.advantages = whiten_by_part(rollout.advantages, real, collected.responses)
        self.rollout, self.trunk, self.measured = rollout, collected.trunk, []
        self.facts = {
            **collected.facts,
            "reward_std": float(collected.rewards.std(unbiased=False)),
            "kl": float(kl.sum(1).mean()),
            "kl_coefficient": self.kl.coefficient,
            "explained_variance": explained,
        }

    def batches(self, step: int) -> Sequence[RolloutBatch]:
        """Return the step's rows; none once the update has gone far enough from its sampler."""
        assert self.rollout is not None
        limit = self.settings.stop_kl
        if self.measured and limit is not None and self.measured[-1]["approx_kl"] > limit:
            return []
        self.trunk = self.trunk or self.collector.trunk(self.rollout)
        rows = self.minibatch(step)
        width = int(self.rollout.mask[rows].sum(1).max())
        trunk = Trunk(self.trunk.layer, self.trunk.states[rows, :width])
        tokens = float(self.rollout.real.sum())
        return [RolloutBatch(self.rollout.rows(rows, width=width), trunk, tokens)]

    def loss(self, batch: RolloutBatch, step: int) -> Loss:
        settings, rollout, real = self.settings, batch.rollout, batch.rollout.real
        hidden = self.adapted.hidden(rollout.ids, rollout.mask, trunk=batch.trunk)
        logprobs, entropies = self.collector.logprobs(
            hidden, rollout, entropy_trains=settings.entropy > 0
        )
        values = self.values(hidden, rollout)
        before, advantages = rollout.logprobs, rollout.advantages
        policy = policy_loss(logprobs, before, advantages, real, clip=settings.clip)
        value = value_loss(values, rollout.values, rollout.returns, real, clip=settings.value_clip)
        entropy = masked_mean(entropies, real)
        total = policy.loss + settings.value * value.loss - settings.entropy * entropy
        parts = {
            "policy_loss": policy.loss,
            "value_loss": value.loss,
            "clip_fraction": policy.fraction,
        }
        if self.collector.keeps_decisions:
            logits = self.adapted.decide(hidden, rollout.prompt_mask)
            parts["decision_loss"] = drift(logits, rollout.decided)
            total = total + settings.decision * parts["decision_loss"]
        now = logprobs.detach()
        ratio = ((now - before) * real).exp()
        parts |= {
            "approx_kl": masked_mean(kl_estimate(before, now, estimator="k3"), real),
            "ratio": masked_mean(ratio, real),
            "ratio_max": ratio.max(),
        }
        return Loss(total, detached(parts), real.sum())

    def finish(self, step: int, log: StepLog | None) -> Iterable[Metrics]:
        """Log the update if it is over, steer the KL coefficient, forget the rollout."""
        if log:
            self.measured.append({**log.parts, "gradient_norm": log.gradient_norm})
        if (step + 1) % self.steps_an_update:
            return
        count = len(self.measured)
        means = {name: sum(row[name] for row in self.measured) / count for name in self.measured[0]}
        update = (step + 1) // self.steps_an_update
        self.updates.append({"update": update, "steps": count, **self.facts, **means})
        self.kl.update(self.facts["kl"], samples=self.settings.batch)
        self.rollout, self.trunk, self.measured = None, None, []
        yield self._update_metrics(self.updates[-1])

    def measurements(self, done: int) -> int:
        return done // self.steps_an_update

    def history(self, logs: Sequence[StepLog]) -> list[Metrics]:
        return [self._update_metrics(row) for row in self.updates]

    def note(self, log: StepLog | None) -> str:
        return f"reward {self.facts['reward']:+.2f} KL {self.facts['kl']:.2f}"

    def place(self, step: int) -> str:
        rows = self.minibatch(step).tolist()
        return f", update {step // self.steps_an_update + 1}, rows {rows}"

    def indices(self, update: int) -> list[int]:
        """Return which prompts an update asks, each `responses` times."""
        return [index for index in self.plan[update] for _ in range(self.settings.responses)]

    def minibatch(self, step: int) -> Tensor:
        """Return the rows of a step: each epoch deals the batch out once, in an order of its own.

        Like lengths stand together.
        """
        assert self.rollout is not None
        settings, update = self.settings, step // self.steps_an_update
        epoch, number = divmod(step % self.steps_an_update, settings.minibatches)
        size = settings.batch // settings.minibatches
        ordered = self.rollout.mask.sum(1).argsort(stable=True)
        order = list(range(settings.minibatches))
        random.Random(f"minibatches:{self.loop.seed}:{update}:{epoch}").shuffle(order)
        start = order[number] * size
        return ordered[start : start + size]

    def values(self, hidden: Tensor, rollout: Rollout) -> Tensor:
        """Return the (batch, steps) value of each state before its step."""
        rows = torch.arange(len(hidden), device=hidden.device).unsqueeze(1)
        # Detached: what helps to foresee rewards must not move the policy.
        before = hidden.detach()[rows, (rollout.positions - 1).clamp(min=0)]
        return self.value(before) * rollout.real

    def _add_rewards(self, rewards: Tensor, indices: Sequence[int], collected: Collected) -> None:
        """Add what is earned early in its place and the rest at the end, to (batch, steps)."""
        real, rest = collected.rollout.real, collected.rewards
        for row, (index, response) in enumerate(zip(indices, collected.responses, strict=True)):
            for place, amount in self.collector.task.shaped_rewards(index, response).items():
                rewards[row, sum(response.chosen[:place])] += amount
                rest[row] -= amount
        last = (real.sum(1) - 1).clamp(min=0).long()
        rewards[torch.arange(len(last), device=last.device), last] += leave_one_out(
            rest, responses=self.settings.responses
        )

    def _update_metrics(self, row: dict[str, Any]) -> Metrics:
        update, settings = row["update"], self.settings
        before = (update - 1) * settings.batch // settings.responses
        values = {name: float(value) for name, value in row.items() if name != "update"}
        return Metrics(
            training=self.name,
            step=update,
            steps=settings.updates,
            epoch=1 + before // max(1, len(self.collector.task.prompts)),
            samples=settings.batch,
            tokens=round(row["tokens"] * settings.batch),
            values={"loss": row["policy_loss"], **values},
        )

    def _set_coefficient(self, value: float) -> None:
        self.kl.coefficient = value

    def _set_updates(self, rows: list[dict[str, Any]]) -> None:
        self.updates[:] = rows


class _RolloutState:
    """The rollout, and what was measured on it so far."""

    def __init__(self, objective: PpoObjective) -> None:
        self.objective = objective

    def capture(self) -> Content:
        ppo = self.objective
        tensors = ppo.rollout.tensors() if ppo.rollout else {}
        kept = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        return Content(kept, {"facts": ppo.facts, "measured": ppo.measured})

    def restore(self, content: Content) -> None:
        ppo, values, device = self.objective, content.values, self.objective.adapted.device
        ppo.facts, ppo.measured, ppo.trunk = values["facts"], values["measured"], None
        tensors = {name: tensor.to(device) for name, tensor in content.tensors.items()}
        ppo.rollout = Rollout(**tensors) if tensors else None


def whiten_by_part(
    advantages: Tensor, real: Tensor, responses: Sequence[SampledResponse]
) -> Tensor:
    """Return advantages with mean 0 and variance 1 over the real steps of each body by itself.

    What a private section can earn is a fraction of what the answer can: on one scale, learning to
    close a section would drown in the noise of the answers.
    """
    body = torch.full_like(advantages, -1)
    for row, response in enumerate(responses):
        steps = zip(response.part, response.chosen, strict=True)
        parts = [part for part, chosen in steps if chosen]
        body[row, : len(parts)] = torch.tensor(parts, dtype=body.dtype)
    whitened = torch.zeros_like(advantages)
    for number in body[real.bool()].unique():
        whitened += masked_whiten(advantages, real * (body == number))
    return whitened
