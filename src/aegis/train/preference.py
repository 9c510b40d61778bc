"""Direct preference optimization over LoRA and gates, by TRL's trainer, on one frozen base.

Source:
    Rafailov et al., Direct Preference Optimization, 2023; with label smoothing Chowdhury et al.,
    Provably Robust DPO, 2024.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, get_cosine_schedule_with_warmup
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from aegis.config import DpoSettings
from aegis.data.records import Pair
from aegis.errors import DataError
from aegis.model.adapted import Adapted
from aegis.model.chunks import in_chunks
from aegis.train.examples import encode_pair
from aegis.train.reward import EncodedPair, pair_plan
from aegis.train.services import TrainServices
from aegis.train.task import distance
from aegis.train.trainer import (
    Durable,
    Ledger,
    Log,
    forget_forward,
    make_policy_optimizer,
    train_policy_only,
)


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
    tokenizer: Any, pairs: Sequence[Pair], *, system: str | None, max_length: int
) -> list[Preference]:
    """The pairs as ids, tags and end token included; those longer than `max_length` are left
    out."""
    found = []
    for pair in pairs:
        prompt_length, chosen, rejected = encode_pair(tokenizer, pair, system=system)
        if max(len(chosen), len(rejected)) <= max_length:
            apart = distance(pair.chosen.decision, pair.rejected.decision)
            found.append(
                Preference(chosen, rejected, apart, prompt_length, int(pair.chosen.decision))
            )
    return found


def train_dpo(
    adapted: Adapted,
    pairs: Sequence[Preference],
    settings: DpoSettings,
    *,
    tokenizer: Any,
    seed: int,
    clip_norm: float = 1.0,
    services: TrainServices | None = None,
) -> list[Log]:
    """Train LoRA and gates in place; `adapted` has its reference already. Returns the log of every
    step.

    Raises:
        DataError: if there is no pair.
        StoppedError: if a stop was asked for; everything up to the last step is saved.
        AegisError: if a gradient is not finite.
    """
    if not pairs:
        raise DataError(
            "train.algorithm dpo needs pairs, and none fits train.max_length; give some under data.pairs"
        )
    if settings.pairs is not None:
        pairs = random.Random(f"dpo:{seed}").sample(pairs, min(settings.pairs, len(pairs)))
    plan = pair_plan(pairs, settings, seed=seed)
    train_policy_only(adapted)
    optimizer = make_policy_optimizer(adapted, lr=settings.lr, gate_lr=settings.gate_lr)
    scheduler = get_cosine_schedule_with_warmup(
        optimizer, round(settings.warmup * len(plan)), len(plan)
    )
    ledger = Ledger(
        adapted,
        optimizer,
        scheduler,
        name="DPO",
        setting="train.dpo.lr",
        steps=len(plan),
        seed=seed,
        clip_norm=clip_norm,
        services=services,
    )

    def make(arguments: dict[str, Any]) -> Trainer:
        loss: dict[str, Any] = {"loss_type": ["sigmoid"]}
        if settings.label_smoothing:
            loss = {"loss_type": ["robust"], "label_smoothing": settings.label_smoothing}
        config = DPOConfig(**arguments, beta=settings.beta, max_length=None, **loss)
        batches = _Batches(pairs, plan[ledger.done :], pad_id=tokenizer.pad_token_id)
        return _Trainer(ledger, batches, config, tokenizer, decision_weight=settings.decision)

    try:
        return ledger.run(make)
    finally:
        forget_forward(adapted.base)


class _Batches(Sequence[dict[str, Any]]):
    """The rest of the plan, each batch made when it is asked for; TRL's collator puts the chosen
    sides first."""

    def __init__(
        self, pairs: Sequence[Preference], plan: Sequence[list[int]], *, pad_id: int
    ) -> None:
        self.pairs, self.plan = pairs, plan
        self.collate = DataCollatorForPreference(pad_token_id=pad_id)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: Any) -> Any:
        pairs = [self.pairs[index] for index in self.plan[step]]
        return self.collate([_row(pair) for pair in pairs]) | {
            "decisions": torch.tensor([pair.decision for pair in pairs])
        }


def _row(pair: Preference) -> dict[str, list[int]]:
    start = pair.prompt_length
    chosen, rejected = list(pair.chosen), list(pair.rejected)
    return {
        "prompt_ids": chosen[:start],
        "chosen_ids": chosen[start:],
        "rejected_ids": rejected[start:],
    }


@dataclass(frozen=True)
class Scores:
    """What TRL reads of a forward pass: (batch, time − 1) each, 0 where nothing is asked. Only
    `log_probs` has gradients."""

    log_probs: Tensor
    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor


class Scorer:
    """Log-probabilities of the labels through the whole of lm_head, gate and tag rows included.

    TRL's own fused head multiplies by the weight of lm_head alone; both would be left out of the
    loss without a word.
    """

    def __init__(self, adapted: Adapted) -> None:
        self.adapted = adapted
        self.hidden: Tensor | None = None  # of the last pass with gradients, for the decision head

    def __call__(
        self, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any
    ) -> Scores:
        """All (batch, time), padded on the right; labels are −100 where nothing is asked."""
        self.adapted.base.eval()  # dropout would make the policy and the reference two different models at the start
        hidden = self.adapted.hidden(input_ids, attention_mask)
        if torch.is_grad_enabled():
            self.hidden = hidden
        targets = labels[:, 1:]
        asked = targets != -100
        columns = in_chunks(self._score, hidden[:, :-1][asked], targets[asked])
        return Scores(*(_spread(values, asked) for values in columns))

    def _score(self, before: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """(n,) each: log-probabilities of the targets, entropies, mean logits, and whether the
        target is the best."""
        logits = self.adapted.logits(before).float()
        logs = torch.log_softmax(logits, -1)
        chosen = logs.gather(1, targets.unsqueeze(1)).squeeze(1)
        with torch.no_grad():
            entropy = -(logs.exp() * logs).sum(-1)
            best = logits.argmax(-1) == targets
        return chosen, entropy, logits.detach().mean(-1), best


def _spread(values: Tensor, asked: Tensor) -> Tensor:
    full = torch.zeros(asked.shape, dtype=values.dtype, device=values.device)
    full[asked] = values
    return full


class _Reference(nn.Module):
    """The frozen reference as TRL wants one: a module to call. It holds no weights of its own."""

    def __init__(self, score: Scorer) -> None:
        super().__init__()
        self.score, self.config = score, score.adapted.base.config

    def forward(self, **inputs: Any) -> Scores:
        with self.score.adapted.acting_as("reference"):
            return self.score(**inputs)


class _Trainer(Durable, DPOTrainer):
    """DPO with our forward pass, and the decision loss beside it."""

    def __init__(
        self,
        ledger: Ledger,
        batches: Sequence[Any],
        config: DPOConfig,
        tokenizer: Any,
        *,
        decision_weight: float,
    ) -> None:
        self.ledger, self.batches, self.decision_weight = ledger, batches, decision_weight
        self.scorer = Scorer(ledger.adapted)
        reference: Any = _Reference(self.scorer)
        super().__init__(
            model=ledger.adapted.peft,
            ref_model=reference,
            args=config,
            train_dataset=datasets.Dataset.from_list([_row(pair) for pair in batches.pairs]),  # type: ignore[attr-defined]
            processing_class=tokenizer,
            optimizers=(ledger.optimizer, ledger.scheduler),
        )
        forget_forward(reference)
        ledger.adapted.base.forward = (
            self.scorer
        )  # instead of TRL's fused head; forgotten when the training is over

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        return dataset  # ids already

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        decisions = inputs.pop("decisions")
        self._metrics["train"]["pairs"].append(len(decisions))
        self._metrics["train"]["tokens"].append(int(inputs["attention_mask"].sum()))
        loss = super().compute_loss(model, inputs)
        if not self.decision_weight:
            return loss
        assert self.scorer.hidden is not None
        count = len(decisions)
        prompt_mask = (inputs["completion_mask"][:count].cumsum(1) == 0) * inputs["attention_mask"][
            :count
        ]
        logits = self.ledger.adapted.decide(self.scorer.hidden[:count], prompt_mask)
        decision = functional.cross_entropy(logits, decisions)
        self._metrics["train"]["decision_loss"].append(float(decision.detach()))
        return loss + self.decision_weight * decision
