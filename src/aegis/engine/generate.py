"""Sample text from a model, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from aegis.config import GenerateSettings
from aegis.model.prompt import PromptEncoder, pad


@torch.inference_mode()
def complete(
    model: Any, tokenizer: Any, prompts: Sequence[str], settings: GenerateSettings, *, seed: int
) -> list[str]:
    """Answer the prompts as one batch; the same seed and prompts give the same texts."""
    encoder = PromptEncoder(tokenizer)
    rows = [encoder.ids(prompt) for prompt in prompts]
    ids, mask = pad(rows, value=tokenizer.pad_token_id, left=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=settings.max_new_tokens,
            do_sample=True,
            temperature=settings.temperature,
            top_p=settings.top_p,
            pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
