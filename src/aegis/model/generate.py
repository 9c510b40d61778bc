"""Sample text from a model, many prompts at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    batch_size: int,
    temperature: float,
    top_p: float,
    seed: int,
    on_batch: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Answer each prompt; the same seed, prompts and batch size give the same texts.

    Args:
        on_batch: called with the number of prompts done so far.
    """
    rows = [prompt_ids(tokenizer, prompt, system=None) for prompt in prompts]
    answers: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(rows), batch_size):
            ids, mask = pad(rows[start : start + batch_size], value=tokenizer.pad_token_id, left=True)
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                pad_token_id=tokenizer.pad_token_id,
            )
            answers += tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            on_batch(len(answers))
    return answers
