"""Sampled responses as tensors, what scores them, and what a task must offer for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from aegis.engine.response_sampler import SampledResponse, restrict
from aegis.model.adapted import Adapted
from aegis.model.chunks import in_chunks
from aegis.model.trunk import Trunk
from aegis.protocol.decisions import NAMES
from aegis.train.advantages import masked_whiten


@dataclass(frozen=True)
class Limiter:
    """What may follow inside a body: the tokens `allowed`, (vocabulary,) bool, and the body's own
    closing tag."""

    allowed: Tensor
    closings: tuple[int, ...]


class Task(Protocol):
    """What PPO is asked: prompts as ids, how to sample responses, and the terms of their reward.

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
        self, indices: Sequence[int], paths: Sequence[SampledResponse]
    ) -> list[dict[str, float]]:
        """Weighted terms of each response's reward, by name; their sum is what counts."""
        ...

    def due(self, index: int, path: SampledResponse) -> dict[int, float]:
        """What of that sum is earned before the end: by place in the response's ids, that of a
        token the model chose."""
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

    def rows(self, wanted: Tensor, *, width: int | None = None) -> Rollout:
        """Some rows, cut to `width` in time; whole by default."""
        tensors = {name: tensor[wanted] for name, tensor in self.tensors().items()}
        return Rollout(
            **{
                name: tensor[:, :width] if name in _IN_TIME else tensor
                for name, tensor in tensors.items()
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


_IN_TIME = ("ids", "mask", "prompt_mask")


def chosen_logprobs(
    adapted: Adapted,
    hidden: Tensor,
    rollout: Rollout,
    *,
    limiter: Limiter | None,
    temperature: float,
    entropy_trains: bool = False,
) -> tuple[Tensor, Tensor]:
    """(batch, steps) log-probabilities of the chosen tokens and entropies, under the limiter and
    the temperature.

    Args:
        hidden: (batch, time, d) last hidden states of the role that is scored.
        entropy_trains: let gradients through the entropies; without it entropies are zeros wherever
            gradients are taken.
    """
    real = rollout.real.bool()
    rows = torch.arange(len(hidden), device=hidden.device).unsqueeze(1)
    before = hidden[rows, (rollout.positions - 1).clamp(min=0)][real]
    tokens, closing, may_close = (
        tensor[real] for tensor in (rollout.tokens, rollout.closing, rollout.may_close)
    )

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
    for column in in_chunks(score, before, tokens, closing, may_close):
        full = torch.zeros_like(rollout.real)
        full[real] = column
        results.append(full)
    return results[0], results[1]


@torch.no_grad()
def decided_before(adapted: Adapted, rollout: Rollout, trunk: Trunk) -> Tensor:
    """(batch, 4) log-probabilities of the decisions by the reference: what this training should
    leave as it is."""
    width = int(rollout.prompt_mask.sum(1).max())
    mask, lower = rollout.mask[:, :width], Trunk(trunk.layer, trunk.states[:, :width])
    with adapted.acting_as("reference"):
        hidden = adapted.hidden(rollout.ids[:, :width], mask, trunk=lower)
        return adapted.decide(hidden, rollout.prompt_mask[:, :width]).log_softmax(-1)


def drift(logits: Tensor, decided: Tensor) -> Tensor:
    """Mean KL, in nats, of the decisions as they were, (n, 4) log-probabilities, to those of (n, 4)
    logits."""
    return functional.kl_div(
        logits.log_softmax(-1), decided, reduction="batchmean", log_target=True
    )


def whiten_by_part(advantages: Tensor, real: Tensor, paths: Sequence[SampledResponse]) -> Tensor:
    """(batch, steps) advantages with mean 0 and variance 1 over the real steps of each body by
    itself.

    What a private section can earn is a fraction of what the answer can: on one scale, learning to
    close a section would drown in the noise of the answers.
    """
    body = torch.full_like(advantages, -1)
    for row, path in enumerate(paths):
        here = [part for part, chosen in zip(path.part, path.chosen, strict=True) if chosen]
        body[row, : len(here)] = torch.tensor(here, dtype=body.dtype)
    whitened = torch.zeros_like(advantages)
    for number in body[real.bool()].unique():
        whitened += masked_whiten(advantages, real * (body == number))
    return whitened


def make_rollout(
    paths: Sequence[SampledResponse], task: Task, *, pad_id: int, device: torch.device
) -> Rollout:
    """The responses as padded tensors, everything that is still to be computed zero."""
    rows = [[*path.prompt, *path.ids] for path in paths]
    width, steps = max(map(len, rows)), max(1, *(sum(path.chosen) for path in paths))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask, prompt_mask = torch.zeros_like(ids), torch.zeros_like(ids)
    shape = (len(rows), steps)
    positions, tokens, closing = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    may_close, real = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    for row, path in enumerate(paths):
        ids[row, : len(rows[row])] = torch.tensor(rows[row])
        mask[row, : len(rows[row])] = 1
        prompt_mask[row, : len(path.prompt)] = 1
        at = [place for place, chosen in enumerate(path.chosen) if chosen]
        here = slice(0, len(at))
        positions[row, here] = torch.tensor(
            [len(path.prompt) + place for place in at], dtype=torch.long
        )
        tokens[row, here] = torch.tensor([path.ids[place] for place in at], dtype=torch.long)
        if task.limiter:
            closing[row, here] = torch.tensor(
                [task.limiter.closings[path.part[place]] for place in at], dtype=torch.long
            )
            may_close[row, here] = torch.tensor(
                [path.may_close[place] for place in at], dtype=torch.bool
            )
        real[row, here] = 1.0
    decided = torch.zeros(len(rows), len(NAMES))
    empty = [torch.zeros(shape) for _ in range(5)]
    tensors = (ids, mask, prompt_mask, decided, positions, real, tokens, closing, may_close, *empty)
    return Rollout(*(tensor.to(device) for tensor in tensors))
