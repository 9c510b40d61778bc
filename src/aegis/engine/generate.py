"""Sample text from a model, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from aegis.config import GenerateSettings
from aegis.engine.scoring import cut
from aegis.model.base import Base
from aegis.model.device import fast_dtype, pick_device
from aegis.model.own_chat import OwnChat
from aegis.model.prompt import PromptEncoder, pad
from aegis.protocol.thinking import TAGS
from aegis.runs.reporter import bar
from aegis.storage.files import fingerprint
from aegis.storage.journal import Remember


@torch.inference_mode()
def complete(
    model: Any, tokenizer: Any, prompts: Sequence[str], settings: GenerateSettings, *, seed: int
) -> list[str]:
    """Answer the prompts as one batch; the same seed and prompts give the same texts."""
    sampled = {"temperature": settings.temperature, "top_p": settings.top_p}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"max_new_tokens": settings.max_new_tokens, "do_sample": True, **sampled}
        rows = list(map(PromptEncoder(tokenizer).ids, prompts))
        return _generated(model, tokenizer, rows, **options)


@torch.inference_mode()
def most_probable(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int, base: bool = False
) -> list[str]:
    """Answer the prompts as one batch in plain chat, taking the most probable token.

    Args:
        base: ask as a base is asked, behind examples where it has no chat of its own.
    """
    options = {"max_new_tokens": max_new_tokens, "do_sample": False}
    options |= dict.fromkeys(("temperature", "top_p", "top_k"))  # of the model's own settings
    chat = OwnChat(tokenizer)
    options |= chat.stopping() if base else {}
    rows = list(map(chat.ids if base else chat.encoder.ids, prompts))
    stops = chat.stops if base else TAGS  # an answer in plain chat ends at any tag
    return [cut(text, stops) for text in _generated(model, tokenizer, rows, **options)]


def _generated(model: Any, tokenizer: Any, rows: list[list[int]], /, **options: Any) -> list[str]:
    ids, mask = pad(rows, value=tokenizer.pad_token_id, left=True)
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    return tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)


class BaseSampler:
    """A base that answers prompts, loaded for the first batch that the journal does not hold."""

    def __init__(
        self,
        base: Base,
        settings: GenerateSettings,
        seed: int,
        journal: Remember,
        *,
        say: Callable[[str], None],
    ) -> None:
        self.base, self.settings, self.seed = base, settings, seed
        self.journal, self.say = journal, say
        self.loaded: tuple[Any, Any] | None = None

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        size, answers = self.settings.batch_size, list[str]()
        with bar("generating", len(prompts)) as advance:
            for start in range(0, len(prompts), size):
                batch = prompts[start : start + size]
                key = fingerprint("generated", *batch)
                answers += self.journal(key, partial(self._complete, batch))
                advance(len(batch))
        return answers

    def _complete(self, prompts: Sequence[str]) -> list[str]:
        """Answer a batch; its seed comes from its prompts, whatever batches came before."""
        if self.loaded is None:
            self.say(f"asking {self.base.spec} to write samples")
            model: Any = self.base.load_model(dtype=fast_dtype())
            self.loaded = model.to(pick_device()), self.base.load_tokenizer()
        seed = int(fingerprint(self.seed, *prompts)[:15], 16)
        return complete(*self.loaded, prompts, self.settings, seed=seed)
