"""What PPO, DPO, GRPO and RLOO train, and what keeps the decisions where SFT left them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from aegis.model.adapted import Adapted, parameters_by_kind
from aegis.train.loop import StepLog


def train_policy_only(adapted: Adapted) -> None:
    """Let LoRA and gates train, and α if it is learned, without dropout.

    The decision head stays as SFT left it, and so do the tags' rows: below the lowest adapted layer
    policy and reference must see the same. Dropout would make the policy that samples, the one that
    trains and the reference different models from the start.
    """
    adapted.train_only("default")
    adapted.head.requires_grad_(False)
    if adapted.rows:
        adapted.rows.requires_grad_(False)
    adapted.eval()


def policy_groups(adapted: Adapted, *, lr: float, gate_lr: float) -> list[dict[str, Any]]:
    """Return AdamW's groups over what `train_policy_only` left to train."""
    kinds = parameters_by_kind(adapted)
    return [
        {"params": kinds[kind], "lr": rate, "weight_decay": 0.0}
        for kind, rate in (("lora", lr), ("gates", gate_lr))
        if kinds[kind]
    ]


def drift(logits: Tensor, decided: Tensor) -> Tensor:
    """Return the mean KL, in nats, of the decisions as they were to those of the logits.

    Args:
        logits: (n, 4).
        decided: (n, 4) log-probabilities.
    """
    return functional.kl_div(
        logits.log_softmax(-1), decided, reduction="batchmean", log_target=True
    )


def history_row(log: StepLog) -> dict[str, float]:
    """Return one flat line of a policy's history."""
    row = log.to_json()
    return {("grad_norm" if key == "gradient_norm" else key): row[key] for key in row}
