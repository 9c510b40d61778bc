"""From the last hidden state to logits, and which lm_head does not outlive a conversion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Their GGUF converters drop lm_head.weight, so that a gate folded into it would be lost in silence.
LM_HEAD_DROPPED = frozenset({"gemma", "gemma2"})


def vocabulary_logits(model: Any, hidden: Tensor) -> Tensor:
    """Apply lm_head and, where the architecture has one, its soft cap (Gemma 2)."""
    logits = model.get_output_embeddings()(hidden)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def lm_head_refusal(model_type: str) -> str | None:
    """Return why this architecture gets no gate on lm_head, or None."""
    if model_type not in LM_HEAD_DROPPED:
        return None
    return (
        f"a gate on the lm_head of {model_type} would be lost: "
        "its GGUF converter drops lm_head.weight"
    )
