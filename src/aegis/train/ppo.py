"""Proximal policy optimization over LoRA and gates, on one frozen base, resumable at every
optimizer step.

What is asked and how it is rewarded is a `Task`; `train/quadruple.py` has the one for quadruple
thinking.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aegis.config import PpoSettings
from aegis.errors import AegisError, StoppedError
from aegis.model.adapted import Adapted, Role, parameters_by_kind
from aegis.model.heads import ScalarHead
from aegis.model.trunk import Trunk
from aegis.runs.events import Metrics, TrainingBegun
from aegis.runs.reporter import bar
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
from aegis.train.reward import RewardModel
from aegis.train.rollout import (
    Rollout,
    Task,
    chosen_logprobs,
    decided_before,
    drift,
    make_rollout,
    whiten_by_part,
)
from aegis.train.services import TrainServices
from aegis.train.state import Content, ModuleState, OptimizerState, Part, RandomState, Values


class PPO:
    """One training.

    Args:
        adapted: the policy; with a reference copy where `settings.reference` is `sft`.
        value: the value head, trained along.
        reward: the reward model, if it counts.
        services: the reporter gets every update's metrics, its number for a step.
    """

    def __init__(
        self,
        adapted: Adapted,
        value: ScalarHead,
        task: Task,
        settings: PpoSettings,
        *,
        pad_id: int,
        seed: int,
        clip_norm: float = 1.0,
        reward: RewardModel | None = None,
        services: TrainServices | None = None,
    ) -> None:
        self.services = services or TrainServices()
        self.adapted, self.value, self.task, self.settings = adapted, value, task, settings
        self.pad_id, self.seed, self.clip_norm = pad_id, seed, clip_norm
        self.reward, self.checkpoints = reward, self.services.snapshots
        self.reference_role: Role = "reference" if settings.reference == "sft" else "base"
        adapted.head.requires_grad_(
            False
        )  # it stays as SFT left it; LoRA and gates are held to what it says
        if adapted.rows:  # below the lowest adapted layer everybody must see the same
            adapted.rows.requires_grad_(False)
        self.layer = adapted.lowest_layer()
        self.optimizer = self._optimizer()
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.kl = AdaptiveKL(settings.kl, target=settings.kl_target)
        self.logs: list[dict[str, Any]] = []
        self.rollout: Rollout | None = None
        self.facts: dict[str, float] = {}
        self.done = 0  # optimizer steps, skipped ones included
        self.measured: list[dict[str, float]] = []
        self._trunk: Trunk | None = None
        asked = settings.batch // settings.responses
        self._plan = prompt_plan(task.kinds, updates=settings.updates, asked=asked, seed=seed)

    @property
    def steps_an_update(self) -> int:
        return self.settings.minibatches * self.settings.epochs

    @property
    def _holds(self) -> bool:
        return self.task.decides and self.settings.decision > 0

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.settings.updates * self.steps_an_update

    def parts(self) -> dict[str, Part]:
        """Everything that a snapshot holds."""
        return {
            "adapted": ModuleState(self.adapted, buffers_of=("head",)),
            "value": ModuleState(self.value),
            "optimizer": OptimizerState(self.optimizer),
            "random": RandomState(),
            "rollout": _RolloutState(self),
            "kl": Values(
                lambda: self.kl.coefficient, lambda found: setattr(self.kl, "coefficient", found)
            ),
            "updates": Values(
                lambda: self.logs, lambda rows: self.logs.__setitem__(slice(None), rows)
            ),
        }

    def train(self) -> list[dict[str, Any]]:
        """Take every update that is still to be done; return the log of all.

        Raises:
            StoppedError: if a stop was asked for; the state is saved.
            AegisError: if a loss is not finite; nothing is stepped then, and the last good snapshot
                stays.
        """
        parts = self.parts()
        if self.checkpoints is None or self.checkpoints.restore(parts) is None:
            torch.manual_seed(self.seed)
            if self.checkpoints:
                self.checkpoints.begin(parts)
        history = [self._metrics(log) for log in self.logs]
        self.services.reporter.emit(
            TrainingBegun(
                training="ppo", done=len(history), steps=self.settings.updates, history=history
            )
        )
        self.adapted.eval()  # dropout would make the rollout and the update two different policies
        with bar("PPO", self.steps, done=self.done, stoppable=False) as advance:
            while self.done < self.steps:
                if self.rollout is None:
                    self._collect_or_stop(parts, advance)
                self._step()
                note = f"reward {self.facts['reward']:+.2f} KL {self.facts['kl']:.2f}"
                advance(note=note)
                if self.done % self.steps_an_update == 0:
                    self._finish()
                if self.checkpoints:
                    self.checkpoints.step_done(self.done, parts, last=self.done == self.steps)
        return self.logs

    def _optimizer(self) -> torch.optim.AdamW:
        kinds, settings = parameters_by_kind(self.adapted), self.settings
        rates = {"lora": settings.lr, "gates": settings.gate_lr}
        groups: list[dict[str, Any]] = [
            {"params": kinds[kind], "lr": rate, "weight_decay": 0.0}
            for kind, rate in rates.items()
            if kinds[kind]
        ]
        groups.append(
            {"params": list(self.value.parameters()), "lr": settings.value_lr, "weight_decay": 0.0}
        )
        return torch.optim.AdamW(groups)

    def _collect_or_stop(self, parts: dict[str, Part], advance: Callable[..., None]) -> None:
        """Sample and score; a stop in the middle saves the state from before the first sampled
        token."""
        random_before = RandomState().capture()

        def on_token() -> None:
            advance(0, note="sampling")
            if self.checkpoints:
                self.checkpoints.check()

        try:
            self._collect(on_token)
        except StoppedError:
            RandomState().restore(random_before)
            if self.checkpoints:
                self.checkpoints.step_done(self.done, parts)
            raise

    @torch.no_grad()
    def _collect(self, on_token: Callable[[], None]) -> None:
        begun = time.perf_counter()
        indices = self._indices(self.done // self.steps_an_update)
        paths = self.task.sample([self.task.prompts[index] for index in indices], on_token)
        sampled = time.perf_counter()
        rollout = make_rollout(paths, self.task, pad_id=self.pad_id, device=self.adapted.device)
        terms = self.task.terms(indices, paths)
        scores = self._score(rollout)
        if scores is not None:
            for row, score in zip(terms, scores.tolist(), strict=True):
                row["reward_model"] = score
        total = torch.tensor([sum(row.values()) for row in terms], device=rollout.ids.device)
        settings = self.settings
        kl = (
            kl_estimate(rollout.logprobs, rollout.reference, estimator=settings.kl_estimator)
            * rollout.real
        )
        rewards = -self.kl.coefficient * kl
        last = (rollout.real.sum(1) - 1).clamp(min=0).long()
        rest = total.clone()
        for row, (index, path) in enumerate(zip(indices, paths, strict=True)):
            for place, amount in self.task.due(index, path).items():
                rewards[row, sum(path.chosen[:place])] += amount
                rest[row] -= amount
        rewards[torch.arange(len(last), device=last.device), last] += leave_one_out(
            rest, responses=settings.responses
        )
        if settings.whiten_rewards:
            rewards = masked_whiten(rewards, rollout.real, keep_mean=True)
        rollout.advantages, rollout.returns = generalized_advantages(
            rewards, rollout.values, rollout.real, gamma=settings.gamma, lam=settings.lam
        )
        explained = explained_variance(rollout.values, rollout.returns, rollout.real)
        if settings.whiten_advantages:
            rollout.advantages = whiten_by_part(rollout.advantages, rollout.real, paths)
        self.rollout, self.measured = rollout, []
        names = sorted({name for row in terms for name in row})
        self.facts |= {
            "reward": float(total.mean()),
            "reward_std": float(total.std(unbiased=False)),
            **{
                f"reward/{name}": sum(row.get(name, 0.0) for row in terms) / len(terms)
                for name in names
            },
            "kl": float(kl.sum(1).mean()),
            "kl_coefficient": self.kl.coefficient,
            "explained_variance": explained,
            "tokens": float(rollout.real.sum(1).mean()),
            "ended": sum(all(path.closed) for path in paths) / len(paths),
            "tokens_per_second": sum(len(path.ids) for path in paths) / (sampled - begun),
            "sample_seconds": sampled - begun,
            "score_seconds": time.perf_counter() - sampled,
        }

    def _score(self, rollout: Rollout) -> Tensor | None:
        """Fill in log-probabilities and values; (batch,) weighted scores of the reward model, None
        without one.

        The trunk below the lowest adapted layer is computed once; the reward model goes on from
        where the reference pass enters its own lowest layer.
        """
        adapted, ids, mask = self.adapted, rollout.ids, rollout.mask
        trunk = self._shared(rollout)
        if self._holds:
            rollout.decided = decided_before(adapted, rollout, trunk)
        hidden = adapted.hidden(ids, mask, trunk=trunk)
        rollout.logprobs, entropies = self._logprobs(hidden, rollout)
        rollout.values = self._values(hidden, rollout)
        self.facts = {"entropy": float(masked_mean(entropies, rollout.real))}
        upper = self.reward.layer if self.reward else adapted.depth
        with adapted.acting_as(self.reference_role):
            hidden, caught = adapted.hidden_and_trunk(
                ids, mask, layer=max(upper, self.layer), trunk=trunk
            )
            rollout.reference = self._logprobs(hidden, rollout)[0]
        if self.reward is None or not self.settings.weights.reward_model:
            return None
        # It stands on the supervised model, not on the bare base; and its own LoRA may begin below the policy's.
        if self.reference_role == "base":
            caught = trunk
        if caught and self.reward.layer < caught.layer:
            caught = None
        return self.settings.weights.reward_model * self.reward.score(
            adapted, ids, mask, trunk=caught
        ).clamp(-3, 3)

    def _shared(self, rollout: Rollout) -> Trunk:
        if self._trunk is None:
            with torch.no_grad():
                self._trunk = self.adapted.trunk(rollout.ids, rollout.mask, layer=self.layer)
        return self._trunk

    def _logprobs(self, hidden: Tensor, rollout: Rollout) -> tuple[Tensor, Tensor]:
        settings = self.settings
        return chosen_logprobs(
            self.adapted,
            hidden,
            rollout,
            limiter=self.task.limiter,
            temperature=settings.temperature,
            entropy_trains=settings.entropy > 0,
        )

    def _values(self, hidden: Tensor, rollout: Rollout) -> Tensor:
        rows = torch.arange(len(hidden), device=hidden.device).unsqueeze(1)
        # Detached: what helps to foresee rewards must not move the policy.
        return (
            self.value(hidden.detach()[rows, (rollout.positions - 1).clamp(min=0)]) * rollout.real
        )

    def _step(self) -> None:
        """One optimizer step on a minibatch; skipped if the update has gone far enough from the
        rollout's policy."""
        assert self.rollout is not None
        settings, number = self.settings, self.done % self.steps_an_update
        if (
            self.measured
            and settings.stop_kl is not None
            and self.measured[-1]["approx_kl"] > settings.stop_kl
        ):
            self.done += 1
            return
        rows = self._minibatch(number)
        whole = self._shared(self.rollout)
        width = int(self.rollout.mask[rows].sum(1).max())
        batch, trunk = (
            self.rollout.rows(rows, width=width),
            Trunk(whole.layer, whole.states[rows, :width]),
        )
        hidden = self.adapted.hidden(batch.ids, batch.mask, trunk=trunk)
        logprobs, entropies = self._logprobs(hidden, batch)
        values = self._values(hidden, batch)
        policy = policy_loss(
            logprobs, batch.logprobs, batch.advantages, batch.real, clip=settings.clip
        )
        value = value_loss(
            values, batch.values, batch.returns, batch.real, clip=settings.value_clip
        )
        total = (
            policy.loss
            + settings.value * value.loss
            - settings.entropy * masked_mean(entropies, batch.real)
        )
        measured = {
            "policy_loss": policy.loss,
            "value_loss": value.loss,
            "clip_fraction": policy.fraction,
        }
        if self._holds:
            measured["decision_loss"] = drift(
                self.adapted.decide(hidden, batch.prompt_mask), batch.decided
            )
            total = total + settings.decision * measured["decision_loss"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        parameters = [
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        ]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.clip_norm))
        if not (math.isfinite(float(total.detach())) and math.isfinite(norm)):
            raise AegisError(
                f"PPO step {self.done + 1}, update {self.done // self.steps_an_update + 1}, rows {rows.tolist()}: loss "
                f"{float(total.detach())} and gradient norm {norm} must be finite; the last good snapshot is kept. "
                "Lower train.ppo.lr and run again"
            )
        share = self._share_of_rate()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = share * rate
        self.optimizer.step()
        ratio = (logprobs.detach() - batch.logprobs) * batch.real
        measured |= {
            "approx_kl": masked_mean(
                kl_estimate(batch.logprobs, logprobs.detach(), estimator="k3"), batch.real
            ),
            "ratio": masked_mean(ratio.exp(), batch.real),
            "ratio_max": ratio.exp().max(),
        }
        self.measured.append(
            {name: float(value.detach()) for name, value in measured.items()}
            | {"gradient_norm": norm}
        )
        self.done += 1

    def _share_of_rate(self) -> float:
        """Of the learning rates, what the next step takes: a rise over `warmup`, a fall over
        `decay`."""
        rise, fall = (
            max(1.0, share * self.steps) for share in (self.settings.warmup, self.settings.decay)
        )
        return min(1.0, (self.done + 1) / rise, (self.steps - self.done) / fall)

    def _finish(self) -> None:
        """The update is over: log it, steer the KL coefficient, forget the rollout."""
        means = {
            name: sum(row[name] for row in self.measured) / len(self.measured)
            for name in self.measured[0]
        }
        log = {
            "update": self.done // self.steps_an_update,
            "steps": len(self.measured),
            **self.facts,
            **means,
        }
        self.kl.update(self.facts["kl"], samples=self.settings.batch)
        self.logs.append(log)
        self.rollout, self._trunk, self.measured = None, None, []
        self.services.reporter.emit(self._metrics(log))

    def _metrics(self, log: dict[str, Any]) -> Metrics:
        update, batch = log["update"], self.settings.batch
        asked = batch // self.settings.responses
        values = {name: float(value) for name, value in log.items() if name != "update"}
        return Metrics(
            training="ppo",
            step=update,
            steps=self.settings.updates,
            epoch=1 + (update - 1) * asked // max(1, len(self.task.prompts)),
            samples=batch,
            tokens=round(log["tokens"] * batch),
            values={"loss": log["policy_loss"], **values},
        )

    def _minibatch(self, number: int) -> Tensor:
        """Rows of the number-th step of the update: each epoch deals the batch out once, like
        lengths together, in an order of its own."""
        assert self.rollout is not None
        settings = self.settings
        update, epoch = self.done // self.steps_an_update, number // settings.minibatches
        size = settings.batch // settings.minibatches
        ordered = self.rollout.mask.sum(1).argsort(stable=True)
        order = list(range(settings.minibatches))
        random.Random(f"minibatches:{self.seed}:{update}:{epoch}").shuffle(order)
        start = order[number % settings.minibatches] * size
        return ordered[start : start + size]

    def _indices(self, update: int) -> list[int]:
        """Which prompts an update asks, each `responses` times."""
        return [index for index in self._plan[update] for _ in range(self.settings.responses)]


class _RolloutState:
    """The rollout buffer, and how far the training is through it."""

    def __init__(self, ppo: PPO) -> None:
        self.ppo = ppo

    def capture(self) -> Content:
        ppo = self.ppo
        tensors = (
            {name: tensor.detach().cpu() for name, tensor in ppo.rollout.tensors().items()}
            if ppo.rollout
            else {}
        )
        return Content(tensors, {"done": ppo.done, "facts": ppo.facts, "measured": ppo.measured})

    def restore(self, content: Content) -> None:
        ppo, values = self.ppo, content.values
        ppo.done, ppo.facts, ppo.measured = int(values["done"]), values["facts"], values["measured"]
        on = {name: tensor.to(ppo.adapted.device) for name, tensor in content.tensors.items()}
        ppo.rollout, ppo._trunk = (Rollout(**on) if on else None), None
