"""GRPO and RLOO over LoRA and gates, by TRL's trainers, with responses from our own engine.

Both ask each prompt several times and move the policy towards the responses that are better than
their own group; no value head. One optimizer step an update, so that policy and sampler are the
same and a snapshot holds no half-used responses.

Source:
    Shao et al., DeepSeekMath, 2024 (GRPO, with the token-level normalisation of DAPO, Yu et al.,
    2025); Ahmadian et al., Back to Basics, 2024 (RLOO).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import datasets
import torch
from torch import Tensor, nn
from transformers import Trainer, get_constant_schedule
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from aegis.config import GroupSettings
from aegis.engine.response_sampler import SampledResponse
from aegis.errors import DataError, StoppedError
from aegis.model.adapted import Adapted
from aegis.model.trunk import Trunk
from aegis.train.examples import prompt_plan
from aegis.train.reward import RewardModel
from aegis.train.rollout import Rollout, Task, chosen_logprobs, decided_before, drift, make_rollout
from aegis.train.services import TrainServices
from aegis.train.state import RandomState
from aegis.train.trainer import (
    Durable,
    Ledger,
    Log,
    forget_forward,
    make_policy_optimizer,
    train_policy_only,
)

Algorithm = Literal["grpo", "rloo"]


def train_group(
    algorithm: Algorithm,
    adapted: Adapted,
    task: Task,
    settings: GroupSettings,
    *,
    tokenizer: Any,
    seed: int,
    clip_norm: float = 1.0,
    reward: RewardModel | None = None,
    services: TrainServices | None = None,
) -> list[Log]:
    """Train LoRA and gates in place; `adapted` has its reference already. Returns the log of every
    update.

    Args:
        reward: the reward model, if it counts.

    Raises:
        DataError: if there is no prompt.
        StoppedError: if a stop was asked for; the state is saved, a response that was being sampled
            is sampled anew.
        AegisError: if a gradient is not finite.
    """
    if not task.prompts:
        raise DataError(
            f"train.algorithm {algorithm} needs prompts, and none fits train.max_length; raise it"
        )
    train_policy_only(adapted)
    optimizer = make_policy_optimizer(adapted, lr=settings.lr, gate_lr=settings.gate_lr)
    ledger = Ledger(
        adapted,
        optimizer,
        get_constant_schedule(optimizer),
        name=algorithm.upper(),
        setting="train.group.lr",
        steps=settings.updates,
        seed=seed,
        clip_norm=clip_norm,
        samples=settings.batch,
        services=services,
    )
    plan = prompt_plan(task.kinds, updates=settings.updates, asked=settings.prompts, seed=seed)

    def make(arguments: dict[str, Any]) -> Trainer:
        engine = Engine(ledger, task, settings, reward=reward, pad_id=tokenizer.pad_token_id)
        batches = [
            [{"prompt": index} for index in indices for _ in range(settings.group)]
            for indices in plan[ledger.done :]
            for _ in range(
                settings.minibatches
            )  # TRL reads the update's prompts again for each of its parts
        ]
        return _TRAINERS[algorithm](engine, batches, arguments, tokenizer)

    return ledger.run(make, accumulation=settings.minibatches)


class Engine:
    """Samples an update's responses, rewards them, and scores them as they were sampled.

    Only tokens that the model chose are scored, under the limiter and the temperature. What the
    engine wrote has probability 1 whatever the weights are: its log-probability is 0, for the
    policy and for the reference.
    """

    def __init__(
        self,
        ledger: Ledger,
        task: Task,
        settings: GroupSettings,
        *,
        reward: RewardModel | None,
        pad_id: int,
    ) -> None:
        self.ledger, self.task, self.settings, self.pad_id = ledger, task, settings, pad_id
        self.adapted, self.reward_model = ledger.adapted, reward
        self.layer = self.adapted.lowest_layer()
        self.paths: list[SampledResponse] = []
        self.rewards: list[float] = []
        self.facts: dict[str, float] = {}
        self.rollout: Rollout | None = None
        self.trunk: Trunk | None = None
        self.hidden: Tensor | None = None  # of the last pass with gradients, for the decision head

    @property
    def _holds(self) -> bool:
        return self.task.decides and self.settings.decision > 0

    def sample(self, indices: Sequence[int]) -> list[SampledResponse]:
        """A response to each; a stop in the middle saves the state from before the first sampled
        token.

        Raises:
            StoppedError: if a stop was asked for.
        """
        ledger, before = self.ledger, RandomState().capture()
        self.adapted.base.eval()  # dropout would make the sampler and the policy two different models
        try:
            with torch.no_grad():
                paths = self.task.sample(
                    [self.task.prompts[index] for index in indices], ledger.sampling
                )
        except StoppedError:
            RandomState().restore(before)
            if ledger.checkpoints:
                ledger.checkpoints.step_done(ledger.done, ledger.parts)
            raise
        self.paths = paths
        self.rollout = make_rollout(
            paths, self.task, pad_id=self.pad_id, device=self.adapted.device
        )
        with torch.no_grad():  # below the lowest adapted layer policy and reference are one
            self.trunk = self.adapted.trunk(self.rollout.ids, self.rollout.mask, layer=self.layer)
            if self._holds:
                self.rollout.decided = decided_before(self.adapted, self.rollout, self.trunk)
            self._reward(indices)
        return paths

    def _reward(self, indices: Sequence[int]) -> None:
        assert self.rollout is not None
        terms = self.task.terms(indices, self.paths)
        weight = self.settings.weights.reward_model
        if self.reward_model and weight:
            scores = weight * self.reward_model.score(
                self.adapted, self.rollout.ids, self.rollout.mask
            ).clamp(-3, 3)
            for row, score in zip(terms, scores.tolist(), strict=True):
                row["reward_model"] = score
        self.rewards = [sum(row.values()) for row in terms]
        names = sorted({name for row in terms for name in row})
        self.facts = {
            **{
                f"reward/{name}": sum(row.get(name, 0.0) for row in terms) / len(terms)
                for name in names
            },
            "tokens": float(self.rollout.real.sum(1).mean()),
            "ended": sum(all(path.closed) for path in self.paths) / len(self.paths),
        }

    def reward(self, **_: Any) -> list[float]:
        """Of each response of the update, for TRL."""
        return self.rewards

    def score(self, rows: Tensor, *, reference: bool, width: int) -> tuple[Tensor, Tensor]:
        """(n, width) log-probabilities of the responses `rows`, and entropies; a response's first
        token is in column 0.

        The entropies are −log p of what was sampled, whose mean estimates the policy's entropy and
        costs nothing.
        """
        assert self.rollout is not None
        assert self.trunk is not None
        rollout, trunk = self.rollout.rows(rows), Trunk(self.trunk.layer, self.trunk.states[rows])
        self.adapted.base.eval()
        with self.adapted.acting_as("reference" if reference else "policy"):
            hidden = self.adapted.hidden(rollout.ids, rollout.mask, trunk=trunk)
            chosen, _ = chosen_logprobs(
                self.adapted,
                hidden,
                rollout,
                limiter=self.task.limiter,
                temperature=self.settings.temperature,
            )
        if torch.is_grad_enabled():
            self.hidden = hidden
        real = rollout.real.bool()
        columns = (rollout.positions - rollout.prompt_mask.sum(1, keepdim=True))[real]
        at = torch.arange(len(rows), device=rows.device).unsqueeze(1).expand_as(real)[real], columns
        logs = torch.zeros(len(rows), width, device=rows.device).index_put(at, chosen[real])
        return logs, -logs.detach()

    def decision_loss(self, rows: Tensor) -> Tensor | None:
        """Keeps the decisions where they were; None where there is nothing to decide."""
        if not self._holds:
            return None
        assert self.rollout is not None
        assert self.hidden is not None
        batch = self.rollout.rows(rows)
        return drift(self.adapted.decide(self.hidden, batch.prompt_mask), batch.decided)


class _Grouped(Durable):
    """What GRPO and RLOO have in common here. To TRL a prompt is its number among the task's; it
    sees no text at all."""

    engine: Engine
    beta: float
    ref_model: Any
    loss_is_scaled_for_ga: Any
    current_gradient_accumulation_steps: int
    _metrics: Any

    def _begin(self, engine: Engine, batches: Sequence[Any]) -> None:
        self.engine, self.ledger, self.batches = engine, engine.ledger, batches
        self.rows: Tensor | None = None  # of the responses being scored; None for all

    def _settle(self) -> None:
        """Our reference instead of TRL's, whose copy of LoRA would know nothing of the gates."""
        adapted = self.engine.adapted
        forget_forward(adapted.base)
        if "ref" in adapted.peft.peft_config:
            adapted.peft.delete_adapter("ref")
            train_policy_only(adapted)
        self.ref_model, self.beta = nn.Module(), self.engine.settings.beta

    def _respond(
        self, indices: list[int]
    ) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
        """Ids of prompts and responses, and 1 for each token that the model chose."""
        paths = self.engine.sample(indices)
        for name, value in self.engine.facts.items():
            self._metrics["train"][name].append(value)
        chosen = [[int(one) for one in path.chosen] for path in paths]
        return [list(path.prompt) for path in paths], [list(path.ids) for path in paths], chosen

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.rows = None
        found = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        return found | {"rows": torch.arange(len(inputs), device=self.engine.adapted.device)}

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, Tensor, None]:
        rows = (
            torch.arange(len(input_ids), device=input_ids.device)
            if self.rows is None
            else self.rows
        )
        logs, entropies = self.engine.score(
            rows, reference=model is self.ref_model, width=logits_to_keep
        )
        return logs, entropies, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self.rows = inputs["rows"]
        loss = super()._compute_loss(model, inputs)  # type: ignore[misc]
        decision = self.engine.decision_loss(inputs["rows"])
        if decision is None:
            return loss
        self._metrics["train"]["decision_loss"].append(float(decision.detach()))
        parts = self.current_gradient_accumulation_steps if self.loss_is_scaled_for_ga else 1
        return loss + self.engine.settings.decision * decision / parts


class _GrpoTrainer(_Grouped, GRPOTrainer):
    def __init__(
        self, engine: Engine, batches: Sequence[Any], arguments: dict[str, Any], tokenizer: Any
    ) -> None:
        self._begin(engine, batches)
        config = GRPOConfig(
            **arguments, **_shape(engine.settings), beta=0.0
        )  # so that TRL makes no reference of its own
        super().__init__(**_given(engine, config, tokenizer))
        self._settle()

    def _generate(self, prompts: list[int]) -> Any:
        prompt_ids, ids, chosen = self._respond(prompts)
        return prompt_ids, ids, chosen, [""] * len(ids), None, {}, None, []


class _RlooTrainer(_Grouped, RLOOTrainer):
    """RLOO knows no mask for tokens that somebody else wrote; that their log-probability is 0 does
    the same."""

    def __init__(
        self, engine: Engine, batches: Sequence[Any], arguments: dict[str, Any], tokenizer: Any
    ) -> None:
        self._begin(engine, batches)
        config = RLOOConfig(**arguments, **_shape(engine.settings), beta=0.0)
        super().__init__(**_given(engine, config, tokenizer))
        self._settle()

    def _generate(self, prompts: list[int]) -> Any:
        prompt_ids, ids, _ = self._respond(prompts)
        return prompt_ids, ids, [""] * len(ids)


def _shape(settings: GroupSettings) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": settings.batch // settings.minibatches,
        "num_generations": settings.group,
        "temperature": settings.temperature,
    }


def _given(engine: Engine, config: Any, tokenizer: Any) -> dict[str, Any]:
    numbers = list(range(len(engine.task.prompts)))
    return {
        "model": engine.adapted.peft,
        "reward_funcs": engine.reward,
        "args": config,
        "train_dataset": datasets.Dataset.from_dict({"prompt": numbers}),
        "processing_class": tokenizer,
        "optimizers": (engine.ledger.optimizer, engine.ledger.scheduler),
    }


_TRAINERS: dict[Algorithm, Any] = {"grpo": _GrpoTrainer, "rloo": _RlooTrainer}
