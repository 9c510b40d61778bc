"""Sample text from a model, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aegis.model.prompt import pad, prompt_ids


@torch.inference_mode()
def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[str]:
    """Answer the prompts as one batch; the same seed and prompts give the same texts."""
    ids, mask = pad(
        [prompt_ids(tokenizer, prompt, system=None) for prompt in prompts],
        value=tokenizer.pad_token_id,
        left=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
