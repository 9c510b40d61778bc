"""Sampled responses as tensors, rewarded and scored: what PPO, GRPO and RLOO learn from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from aegis.config import GroupSettings, PpoSettings
from aegis.engine.response_sampler import SampledResponse, restrict
from aegis.model.adapted import Adapted, Role
from aegis.model.chunks import in_chunks
from aegis.model.trunk import Trunk
from aegis.protocol.decisions import NAMES
from aegis.train.advantages import masked_mean
from aegis.train.reward import RewardModel


@dataclass(frozen=True)
class Limiter:
    """What may follow inside a body.

    Args:
        allowed: (vocabulary,) bool.
        closings: each body's own closing tag.
    """

    allowed: Tensor
    closings: tuple[int, ...]


class Task(Protocol):
    """What a policy is asked: prompts as ids, how to sample responses, and how they are rewarded.

    `kinds`: a number for each prompt; every update asks of all kinds as the whole does. `decides`:
    the prompts are requests about which there is something to decide.
    """

    prompts: Sequence[tuple[int, ...]]
    kinds: Sequence[int]
    decides: bool
    limiter: Limiter | None

    def sample(
        self, prompts: Sequence[tuple[int, ...]], on_token: Callable[[], None]
    ) -> list[SampledResponse]: ...
    def terms(
        self, indices: Sequence[int], responses: Sequence[SampledResponse]
    ) -> list[dict[str, float]]:
        """Return the weighted terms of each response's reward; their sum is what counts."""
        ...

    def shaped_rewards(self, index: int, response: SampledResponse) -> dict[int, float]:
        """Return what of that sum is earned early, by place of a chosen token in the ids."""
        ...


@dataclass
class Rollout:
    """Sampled responses with what was known of them then.

    ids, mask, prompt_mask: (batch, time), padded on the right. The rest but `decided` is (batch,
    steps), a step being a token that the model chose: `positions` in ids, `real` 1.0 or 0.0,
    `tokens`, `closing` tag and `may_close` for the limiter, log-probabilities of the policy and the
    reference, values, and what they come to. `decided`: (batch, 4) log-probabilities of the
    decisions before this training.
    """

    ids: Tensor
    mask: Tensor
    prompt_mask: Tensor
    decided: Tensor
    positions: Tensor
    real: Tensor
    tokens: Tensor
    closing: Tensor
    may_close: Tensor
    logprobs: Tensor
    reference: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, numbers: Tensor, *, width: int | None = None) -> Rollout:
        """Return some rows, cut to `width` in time, or whole."""
        tensors = {name: tensor[numbers] for name, tensor in self.tensors().items()}
        for name in ("ids", "mask", "prompt_mask"):
            tensors[name] = tensors[name][:, :width]
        return Rollout(**tensors)

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class RolloutBatch:
    """Some rows of a rollout from the lowest adapted layer up.

    Args:
        update_tokens: how many tokens the model chose in the whole update.
    """

    rollout: Rollout
    trunk: Trunk
    update_tokens: float


@dataclass(frozen=True)
class Collected:
    """An update's responses, rewarded and scored.

    Args:
        terms: of each response's reward, by name.
        hidden: (batch, time, d) the policy's last hidden states.
        trunk: what policy and reference have in common.
        facts: numbers for the log.
    """

    rollout: Rollout
    responses: list[SampledResponse]
    terms: list[dict[str, float]]
    hidden: Tensor
    trunk: Trunk
    facts: dict[str, float]

    @property
    def rewards(self) -> Tensor:
        """The (batch,) sums of the terms."""
        return torch.tensor([sum(row.values()) for row in self.terms], device=self.hidden.device)


class RolloutCollector:
    """Samples responses to a task's prompts, rewards them, and scores them as they were sampled.

    Only tokens that the model chose are scored, under the limiter and the temperature. What the
    engine wrote has probability 1 whatever the weights are.

    Args:
        adapted: the policy, with a reference.
        reward: the reward model, if it counts.
    """

    def __init__(
        self,
        adapted: Adapted,
        task: Task,
        settings: PpoSettings | GroupSettings,
        *,
        pad_id: int,
        reward: RewardModel | None = None,
    ) -> None:
        self.adapted, self.task, self.settings = adapted, task, settings
        self.pad_id, self.reward = pad_id, reward
        self.layer = adapted.lowest_layer()
        bare = isinstance(settings, PpoSettings) and settings.reference == "base"
        self.reference_role: Role = "base" if bare else "reference"

    @property
    def keeps_decisions(self) -> bool:
        """Whether the decisions are to stay where they were."""
        return self.task.decides and self.settings.decision > 0

    @torch.no_grad()
    def collect(self, indices: Sequence[int], on_token: Callable[[], None]) -> Collected:
        """Sample a response to each of the task's prompts at `indices`; reward and score them."""
        begun, task = time.perf_counter(), self.task
        responses = task.sample([task.prompts[index] for index in indices], on_token)
        sampled = time.perf_counter()
        rollout = make_rollout(responses, task, pad_id=self.pad_id, device=self.adapted.device)
        terms = task.terms(indices, responses)
        trunk, hidden, entropies, scores = self.score(rollout)
        if scores is not None:
            for row, score in zip(terms, scores.tolist(), strict=True):
                row["reward_model"] = score
        names = sorted({name for row in terms for name in row})
        facts = {
            f"reward/{name}": sum(row.get(name, 0.0) for row in terms) / len(terms)
            for name in names
        }
        facts |= {
            "entropy": float(masked_mean(entropies, rollout.real)),
            "tokens": float(rollout.real.sum(1).mean()),
            "ended": sum(all(response.closed) for response in responses) / len(responses),
            "tokens_per_second": sum(len(response.ids) for response in responses)
            / (sampled - begun),
            "sample_seconds": sampled - begun,
            "score_seconds": time.perf_counter() - sampled,
        }
        collected = Collected(rollout, responses, terms, hidden, trunk, facts)
        facts["reward"] = float(collected.rewards.mean())
        return collected

    @torch.no_grad()
    def score(self, rollout: Rollout) -> tuple[Trunk, Tensor, Tensor, Tensor | None]:
        """Fill in the rollout's log-probabilities, and the decisions if they are to be kept.

        The trunk below the lowest adapted layer is computed once; the reward model goes on from
        where the reference pass enters its own lowest layer.

        Returns:
            The trunk; the policy's (batch, time, d) last hidden states; (batch, steps) entropies;
            (batch,) weighted scores of the reward model, None without one.
        """
        adapted, ids, mask = self.adapted, rollout.ids, rollout.mask
        trunk = self.trunk(rollout)
        if self.keeps_decisions:
            rollout.decided = decided_before(adapted, rollout, trunk)
        policy = adapted.hidden(ids, mask, trunk=trunk)
        rollout.logprobs, entropies = self.logprobs(policy, rollout)
        upper = self.reward.layer if self.reward else adapted.depth
        with adapted.acting_as(self.reference_role):
            hidden, caught = adapted.hidden_and_trunk(
                ids, mask, layer=max(upper, self.layer), trunk=trunk
            )
            rollout.reference = self.logprobs(hidden, rollout)[0]
        weight = self.settings.weights.reward_model
        if self.reward is None or not weight:
            return trunk, policy, entropies, None
        # It stands on the supervised model, not on the bare base; its LoRA may begin below ours.
        start = trunk if self.reference_role == "base" else caught
        start = None if self.reward.layer < start.layer else start
        scores = self.reward.score(adapted, ids, mask, trunk=start)
        return trunk, policy, entropies, weight * scores.clamp(-3, 3)

    @torch.no_grad()
    def trunk(self, rollout: Rollout) -> Trunk:
        """Compute what enters the lowest adapted layer."""
        return self.adapted.trunk(rollout.ids, rollout.mask, layer=self.layer)

    def logprobs(
        self, hidden: Tensor, rollout: Rollout, *, entropy_trains: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the (batch, steps) log-probabilities of the chosen tokens, and entropies."""
        return chosen_logprobs(
            self.adapted,
            hidden,
            rollout,
            limiter=self.task.limiter,
            temperature=self.settings.temperature,
            entropy_trains=entropy_trains,
        )


def chosen_logprobs(
    adapted: Adapted,
    hidden: Tensor,
    rollout: Rollout,
    *,
    limiter: Limiter | None,
    temperature: float,
    entropy_trains: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the chosen tokens and entropies, under limiter and temperature.

    Args:
        hidden: (batch, time, d) last hidden states of the role that is scored.
        entropy_trains: let gradients through the entropies; without it entropies are zeros wherever
            gradients are taken.

    Returns:
        (batch, steps) both.
    """
    places = rollout.real.nonzero(as_tuple=True)
    before = hidden[places[0], rollout.positions[places] - 1]
    columns = (rollout.tokens, rollout.closing, rollout.may_close)

    def score(
        before: Tensor, tokens: Tensor, closing: Tensor, may_close: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = adapted.logits(before).to(torch.float32, copy=True)
        if limiter:
            logits = restrict(logits, limiter.allowed, closing, may_close)
        if temperature != 1:
            logits.div_(temperature)
        total = logits.logsumexp(-1)
        logs = logits.gather(1, tokens.unsqueeze(1)).squeeze(1) - total
        if torch.is_grad_enabled() and not entropy_trains:  # two more passes over the vocabulary
            return logs, torch.zeros_like(logs)
        chances = (logits - total.unsqueeze(1)).exp()
        return logs, total - (chances * logits.masked_fill(logits.isneginf(), 0.0)).sum(-1)

    results = []
    for column in in_chunks(score, before, *(tensor[places] for tensor in columns)):
        full = torch.zeros_like(rollout.real)
        full[places] = column
        results.append(full)
    return results[0], results[1]


@torch.no_grad()
def decided_before(adapted: Adapted, rollout: Rollout, trunk: Trunk) -> Tensor:
    """Return the reference's (batch, 4) log-probabilities of the decisions."""
    width = int(rollout.prompt_mask.sum(1).max())
    mask, lower = rollout.mask[:, :width], Trunk(trunk.layer, trunk.states[:, :width])
    with adapted.acting_as("reference"):
        hidden = adapted.hidden(rollout.ids[:, :width], mask, trunk=lower)
        return adapted.decide(hidden, rollout.prompt_mask[:, :width]).log_softmax(-1)


def make_rollout(
    responses: Sequence[SampledResponse], task: Task, *, pad_id: int, device: torch.device
) -> Rollout:
    """Return the responses as padded tensors, everything that is still to be computed zero."""
    rows = [[*response.prompt, *response.ids] for response in responses]
    width, steps = max(map(len, rows)), max(1, *(sum(response.chosen) for response in responses))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask, prompt_mask = torch.zeros_like(ids), torch.zeros_like(ids)
    shape = (len(rows), steps)
    positions, tokens, closing = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    may_close, real = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    for row, response in enumerate(responses):
        ids[row, : len(rows[row])] = torch.tensor(rows[row])
        mask[row, : len(rows[row])] = 1
        prompt_mask[row, : len(response.prompt)] = 1
        at = [place for place, chosen in enumerate(response.chosen) if chosen]
        here, start = slice(0, len(at)), len(response.prompt)
        positions[row, here] = torch.tensor([start + place for place in at], dtype=torch.long)
        tokens[row, here] = torch.tensor([response.ids[place] for place in at], dtype=torch.long)
        if task.limiter:
            tags = [task.limiter.closings[response.part[place]] for place in at]
            closing[row, here] = torch.tensor(tags, dtype=torch.long)
            may = [response.may_close[place] for place in at]
            may_close[row, here] = torch.tensor(may, dtype=torch.bool)
        real[row, here] = 1.0
    decided = torch.zeros(len(rows), len(NAMES))
    empty = [torch.zeros(shape) for _ in range(5)]
    tensors = (ids, mask, prompt_mask, decided, positions, real, tokens, closing, may_close, *empty)
    return Rollout(*(tensor.to(device) for tensor in tensors))
