"""Direct preference optimization over LoRA and gates, on one frozen base.

Source:
    Rafailov et al., Direct Preference Optimization, 2023; with label smoothing Chowdhury et al.,
    Provably Robust DPO, 2024.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from aegis.config import DpoSettings
from aegis.data.records import Pair
from aegis.errors import DataError
from aegis.model.adapted import Adapted
from aegis.model.chunks import in_chunks
from aegis.model.prompt import PromptEncoder, pad
from aegis.train.examples import response_ids
from aegis.train.loop import Loss, Objective, cosine_share, detached
from aegis.train.policy import policy_groups, train_policy_only
from aegis.train.reward import EncodedPair, pair_plan
from aegis.train.services import LoopSettings
from aegis.train.state import ModuleState, Part
from aegis.train.task import distance


@dataclass(frozen=True)
class Preference(EncodedPair):
    """A pair of whole responses as ids, the prompt before each.

    Args:
        prompt_length: how many of the ids are the prompt.
        decision: class id of the chosen side.
    """

    prompt_length: int
    decision: int


def encode_preferences(
    tokenizer: Any, pairs: Sequence[Pair], *, system: str | None, max_length: int, end: bool = True
) -> list[Preference]:
    """Return the pairs that fit `max_length` as ids, tags included.

    Both sides carry the verdict that is right: it is no merit of a response.

    Args:
        end: with the end token behind the last tag. A sampled response ends with the tag.
    """
    encoder, encoded = PromptEncoder(tokenizer, system), []
    for pair in pairs:
        prompt, decision = encoder.ids(pair.prompt), pair.chosen.decision
        chosen, rejected = (
            (*prompt, *response_ids(tokenizer, side.thinking, decision, end=end)[0])
            for side in (pair.chosen, pair.rejected)
        )
        if max(len(chosen), len(rejected)) <= max_length:
            steps = distance(decision, pair.rejected.decision)
            encoded.append(Preference(chosen, rejected, steps, len(prompt), int(decision)))
    return encoded


@dataclass(frozen=True)
class PreferenceBatch:
    """Sides of pairs, all chosen ones before all rejected ones, padded on the right.

    Args:
        ids: (2 · pairs, time); `mask` and `response_mask`, which is 1 on the responses, the same.
        prompt_mask: (pairs, time), 1 on the prompts.
        decisions: (pairs,) class ids.
    """

    ids: Tensor
    mask: Tensor
    response_mask: Tensor
    prompt_mask: Tensor
    decisions: Tensor


class DpoObjective(Objective[PreferenceBatch]):
    """−log σ(β · margin), and the decision loss beside it."""

    name, label, remedy = "dpo", "DPO", "Lower train.dpo.lr"

    def __init__(
        self,
        adapted: Adapted,
        pairs: Sequence[Preference],
        settings: DpoSettings,
        loop: LoopSettings,
    ) -> None:
        if not pairs:
            raise DataError(
                "train.algorithm dpo needs pairs, and none fits train.max_length; give some under "
                "data.pairs"
            )
        if settings.pairs is not None:
            count = min(settings.pairs, len(pairs))
            pairs = random.Random(f"dpo:{loop.seed}").sample(pairs, count)
        self.adapted, self.pairs, self.settings, self.loop = adapted, pairs, settings, loop
        train_policy_only(adapted)
        groups = policy_groups(adapted, lr=settings.lr, gate_lr=settings.gate_lr)
        self.optimizer = torch.optim.AdamW(groups)
        self.plan = pair_plan(pairs, settings, seed=loop.seed)
        self.steps = len(self.plan)

    def parts(self) -> dict[str, Part]:
        return {"adapted": ModuleState(self.adapted, buffers_of=("head",))}

    def rate(self, step: int) -> float:
        return cosine_share(step, self.steps, warmup=self.settings.warmup)

    def prepare(self, step: int, on_token: Any) -> dict[str, float]:
        return {"pairs": float(len(self.plan[step]))}

    def batches(self, step: int) -> Sequence[PreferenceBatch]:
        pairs = [self.pairs[index] for index in self.plan[step]]
        sides = [[*pair.chosen] for pair in pairs] + [[*pair.rejected] for pair in pairs]
        ids, mask = pad(sides, value=self.loop.pad_id)
        prompts = torch.tensor([pair.prompt_length for pair in pairs])
        in_prompt = (torch.arange(ids.shape[1]) < prompts.unsqueeze(1)).long()
        decisions = torch.tensor([pair.decision for pair in pairs])
        tensors = (ids, mask, mask - in_prompt.repeat(2, 1), in_prompt, decisions)
        return [PreferenceBatch(*(tensor.to(self.adapted.device) for tensor in tensors))]

    def loss(self, batch: PreferenceBatch, step: int) -> Loss:
        settings, adapted = self.settings, self.adapted
        hidden = adapted.hidden(batch.ids, batch.mask)
        policy = sequence_logprobs(adapted, hidden, batch)
        with torch.no_grad(), adapted.acting_as("reference"):
            before = adapted.hidden(batch.ids, batch.mask)
            reference = sequence_logprobs(adapted, before, batch)
        chosen, rejected = (policy - reference).chunk(2)
        total = preference_loss(
            chosen - rejected, beta=settings.beta, label_smoothing=settings.label_smoothing
        )
        gains = settings.beta * (chosen - rejected)
        logps = policy.chunk(2)
        parts = {
            "rewards/chosen": settings.beta * chosen.mean(),
            "rewards/rejected": settings.beta * rejected.mean(),
            "rewards/accuracies": (gains > 0).float().mean(),
            "rewards/margins": gains.mean(),
            "logps/chosen": logps[0].mean(),
            "logps/rejected": logps[1].mean(),
        }
        if settings.decision:
            logits = adapted.decide(hidden[: len(batch.decisions)], batch.prompt_mask)
            parts["decision_loss"] = functional.cross_entropy(logits, batch.decisions)
            total = total + settings.decision * parts["decision_loss"]
        return Loss(total, detached(parts), batch.mask.sum())

    def epoch(self, done: int) -> int:
        return math.ceil(done / self.steps * self.settings.epochs)

    def samples(self, step: int) -> int:
        return len(self.plan[step])


def preference_loss(margins: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean loss of margins, log π/π_ref of the chosen side less the rejected one's.

    Args:
        margins: (pairs,).
        label_smoothing: the share of pairs that are taken to be the wrong way round.
    """
    right = -functional.logsigmoid(beta * margins)
    if not label_smoothing:
        return right.mean()
    wrong = -functional.logsigmoid(-beta * margins)
    smoothed = (1 - label_smoothing) * right - label_smoothing * wrong
    return (smoothed / (1 - 2 * label_smoothing)).mean()


def sequence_logprobs(adapted: Adapted, hidden: Tensor, batch: PreferenceBatch) -> Tensor:
    """Return the (sides,) log-probability of each response, through the whole of lm_head.

    Gate and tag rows are part of it: to multiply by lm_head's weight alone would leave both out of
    the loss without a word.
    """
    asked = batch.response_mask[:, 1:].bool()
    places = asked.nonzero(as_tuple=True)

    def score(before: Tensor, targets: Tensor) -> tuple[Tensor]:
        logs = torch.log_softmax(adapted.logits(before).float(), -1)
        return (logs.gather(1, targets.unsqueeze(1)).squeeze(1),)

    (scored,) = in_chunks(score, hidden[:, :-1][places], batch.ids[:, 1:][places])
    full = torch.zeros(asked.shape, dtype=scored.dtype, device=scored.device)
    full[places] = scored
    return full.sum(1)
