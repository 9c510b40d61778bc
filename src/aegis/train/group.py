"""GRPO and RLOO over LoRA and gates: the policy moves to what is better than its own group.

Both ask each prompt several times; no value head. One optimizer step an update, so that policy and
sampler are the same and a snapshot holds no half-used responses.

Source:
    Shao et al., DeepSeekMath, 2024 (GRPO, with the token-level normalisation of DAPO, Yu et al.,
    2025); Ahmadian et al., Back to Basics, 2024 (RLOO).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from aegis.config import GroupSettings
from aegis.errors import DataError
from aegis.model.trunk import Trunk
from aegis.runs.events import Metrics
from aegis.train.advantages import Estimator, kl_estimate, leave_one_out, masked_mean
from aegis.train.examples import prompt_plan
from aegis.train.loop import Loss, Objective, StepLog, detached
from aegis.train.policy import drift, policy_groups, train_policy_only
from aegis.train.rollout import Rollout, RolloutBatch, RolloutCollector
from aegis.train.services import LoopSettings
from aegis.train.state import ModuleState, Part

CLIP = 0.2
"""How far from 1 a ratio may go before its gain is cut off."""


class GroupObjective(Objective[RolloutBatch]):
    """What GRPO and RLOO have in common.

    Args:
        estimator: of the KL to the reference that is penalised.
    """

    remedy = "Lower train.group.lr"
    estimator: Estimator

    def __init__(
        self, collector: RolloutCollector, settings: GroupSettings, loop: LoopSettings
    ) -> None:
        if not collector.task.prompts:
            raise DataError(
                f"train.algorithm {self.name} needs prompts, and none fits train.max_length; "
                "raise it"
            )
        self.collector, self.settings, self.adapted = collector, settings, collector.adapted
        train_policy_only(self.adapted)
        groups = policy_groups(self.adapted, lr=settings.lr, gate_lr=settings.gate_lr)
        self.optimizer = torch.optim.AdamW(groups)
        self.steps, kinds = settings.updates, collector.task.kinds
        self.plan = prompt_plan(kinds, updates=self.steps, asked=settings.prompts, seed=loop.seed)
        self.rollout: Rollout | None = None
        self.trunk: Trunk | None = None

    @abstractmethod
    def advantages(self, rewards: Tensor, rollout: Rollout) -> Tensor:
        """Return the (batch,) advantages of responses with these rewards."""

    @abstractmethod
    def policy_loss(self, logprobs: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the batch's share of the policy's loss, a scalar."""

    def parts(self) -> dict[str, Part]:
        return {"adapted": ModuleState(self.adapted, buffers_of=("head",))}

    def rate(self, step: int) -> float:
        return 1.0

    def prepare(self, step: int, on_token: Callable[[], None]) -> dict[str, float]:
        """Sample and reward the update's responses."""
        count = self.settings.group
        indices = [index for index in self.plan[step] for _ in range(count)]
        collected = self.collector.collect(indices, on_token)
        rollout, rewards = collected.rollout, collected.rewards
        advantages = self.advantages(rewards, rollout)
        rollout.advantages = advantages.unsqueeze(1).expand_as(rollout.real)
        self.rollout, self.trunk = rollout, collected.trunk
        kl = kl_estimate(rollout.logprobs, rollout.reference, estimator=self.estimator)
        equal = rewards.view(-1, count).std(1) < 1e-8
        return {
            **collected.facts,
            "kl": float(masked_mean(kl, rollout.real)),
            "reward_std": float(rewards.std()),
            "frac_reward_zero_std": float(equal.float().mean()),
        }

    def batches(self, step: int) -> Sequence[RolloutBatch]:
        assert self.rollout is not None
        assert self.trunk is not None
        rollout, trunk, count = self.rollout, self.trunk, self.settings.minibatches
        order = torch.randperm(len(rollout.ids)).to(rollout.ids.device)
        tokens = float(rollout.real.sum())
        return [
            RolloutBatch(rollout.rows(rows), Trunk(trunk.layer, trunk.states[rows]), tokens)
            for rows in order.chunk(count)
        ]

    def loss(self, batch: RolloutBatch, step: int) -> Loss:
        settings, rollout = self.settings, batch.rollout
        hidden = self.adapted.hidden(rollout.ids, rollout.mask, trunk=batch.trunk)
        logprobs, _ = self.collector.logprobs(hidden, rollout)
        total = self.policy_loss(logprobs, batch)
        parts: dict[str, Tensor] = {}
        if self.collector.keeps_decisions:
            logits = self.adapted.decide(hidden, rollout.prompt_mask)
            parts["decision_loss"] = drift(logits, rollout.decided)
            share = settings.decision / settings.minibatches
            total = total + share * parts["decision_loss"]
        return Loss(total, detached(parts), rollout.real.sum())

    def finish(self, step: int, log: StepLog | None) -> Iterable[Metrics]:
        self.rollout, self.trunk = None, None
        return super().finish(step, log)

    def epoch(self, done: int) -> int:
        asked = (done - 1) * self.settings.prompts
        return 1 + asked // max(1, len(self.collector.task.prompts))

    def samples(self, step: int) -> int:
        return self.settings.batch


class GrpoObjective(GroupObjective):
    """Advantages in standard deviations of the group; KL to the reference in the loss."""

    name, label, estimator = "grpo", "GRPO", "k3"

    def advantages(self, rewards: Tensor, rollout: Rollout) -> Tensor:
        groups = rewards.view(-1, self.settings.group)
        centred = groups - groups.mean(1, keepdim=True)
        return (centred / (groups.std(1, keepdim=True) + 1e-4)).flatten()

    def policy_loss(self, logprobs: Tensor, batch: RolloutBatch) -> Tensor:
        rollout = batch.rollout
        kl = kl_estimate(logprobs, rollout.reference, estimator=self.estimator)
        losses = clipped(logprobs - rollout.logprobs, rollout.advantages) + self.settings.beta * kl
        return (losses * rollout.real).sum() / max(1.0, batch.update_tokens)


class RlooObjective(GroupObjective):
    """Rewards less the mean of the group's others; KL to the reference in the reward."""

    name, label, estimator = "rloo", "RLOO", "k1"

    def advantages(self, rewards: Tensor, rollout: Rollout) -> Tensor:
        kl = ((rollout.logprobs - rollout.reference) * rollout.real).sum(1)
        return leave_one_out(rewards - self.settings.beta * kl, responses=self.settings.group)

    def policy_loss(self, logprobs: Tensor, batch: RolloutBatch) -> Tensor:
        rollout = batch.rollout
        ratio = ((logprobs - rollout.logprobs) * rollout.real).sum(1)
        return clipped(ratio, rollout.advantages[:, 0]).mean() / self.settings.minibatches


def clipped(log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """Return PPO's pessimistic surrogate, to be minimised, for each ratio."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
