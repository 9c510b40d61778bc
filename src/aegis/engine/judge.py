"""A transformers model that decides about prompts and weighs continuations; it writes no text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from aegis.engine.readings import Readings
from aegis.engine.verdict import CalibratedHead, Verdict, verdicts
from aegis.errors import AegisError, ModelError
from aegis.model.base import ModelFolder, context_length
from aegis.model.device import Autocast, autocast, pick_device, quick_attention
from aegis.model.lm_head import vocabulary_logits
from aegis.model.prompt import PromptEncoder, by_length, pad
from aegis.model.token_head import folded_head
from aegis.protocol.decisions import NAMES
from aegis.storage.journal import Remember, compute_anew

_LETTERS = "ABCD"
_QUESTION = (  # what all have in common stands first, and is read once a batch
    "What should the assistant do with a request?\nA. ALLOW, harmless\n"
    "B. ESCALATION, a human decides\nC. DENY, not permitted\nD. REFUSE, harmful or illegal\n"
    "Request: {prompt}\nAnswer with one letter."
)


class Judge:
    """Runs a model over prompts in batches of like length.

    With a decision head (a folder that `aegis fold` wrote), or four tokens in its place, its logits
    decide, weighed against the n-grams'. A model without one is asked a multiple-choice question,
    and the likelihood of the four letters decides: the base's own judgement, with nothing learned.

    Args:
        model: a transformers causal language model, adapted or not.
        batch_tokens: the most tokens of a batch, padding included.
        name: under which it is served.

    Attributes:
        products: whether matrices are multiplied in bfloat16, as `autocast` takes it.
    """

    products: Autocast = "auto"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        head: CalibratedHead | None = None,
        *,
        batch_tokens: int = 2048,
        name: str = "",
    ) -> None:
        self.model, self.tokenizer, self.head = model, tokenizer, head
        self.batch_tokens, self.name = batch_tokens, name
        self.context = context_length(model.config)
        system = head.head.system_prompt if head else None
        self.encoder = PromptEncoder(tokenizer, system, self.context)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        batch_tokens: int = 2048,
        trust_remote_code: bool = False,
    ) -> Judge:
        """Read a model folder; everything small is checked before the weights are loaded.

        Raises:
            ModelError: if the folder is no model, or its head belongs to another width.
        """
        if not folder.is_dir():
            raise ModelError(
                f"{folder}: no such model folder; give one that `aegis fold` or `aegis run` wrote"
            )
        source = ModelFolder(folder, trust_remote_code=trust_remote_code)
        width = source.read_config().get_text_config().hidden_size
        tokenizer, device = source.load_tokenizer(), pick_device()
        own = folded_head(folder, tokenizer, width=width)
        if own and own.features != width:
            raise ModelError(
                f"{folder}: the decision head is {own.features} wide, the model {width}; "
                "fold it again"
            )
        head = CalibratedHead.load(folder, own) if own else None
        model: Any = source.load_model(dtype=dtype, attention=quick_attention(device))
        head = replace(head, head=head.head.to(device)) if head else None
        return cls(
            model.to(device), tokenizer, head, batch_tokens=batch_tokens, name=folder.resolve().name
        )

    @torch.inference_mode()
    def judge(
        self,
        prompts: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        on_batch: Callable[[int], None] = lambda _: None,
        remember: Remember = compute_anew,
    ) -> list[Verdict]:
        """Decide about each prompt by its severest reading; `ms` is that of all its readings.

        Args:
            names: how error messages call each prompt.
            on_batch: called with the number of prompts just done.
            remember: gives the logits and the time of a batch that was judged before.

        Raises:
            DataError: if a prompt is longer than the model's context.
        """
        names = names or [f"prompt {number}" for number in range(1, len(prompts) + 1)]
        read = Readings.of(prompts)
        asked = read.texts if self.head else [_QUESTION.format(prompt=text) for text in read.texts]
        rows = [
            self.encoder.fitting_ids(text, where=names[int(owner)])
            for text, owner in zip(asked, read.owners, strict=True)
        ]
        pending = np.bincount(read.owners)
        logits, times = np.zeros((len(rows), len(NAMES))), np.zeros(len(rows))
        for number, indices in enumerate(
            by_length([len(row) for row in rows], batch_tokens=self.batch_tokens)
        ):
            judged = remember(str(number), partial(self._timed, [rows[i] for i in indices]))
            logits[indices], times[indices] = judged
            np.subtract.at(pending, read.owners[indices], 1)
            on_batch(int((pending[np.unique(read.owners[indices])] == 0).sum()))
        if not np.isfinite(logits).all():
            raise AegisError(
                f"the model gives logits that are not finite in {self.model.dtype}; "
                "fold it in float32"
            )
        if self.head and prompts:
            logits = self.head.calibrated(logits, read.texts, self.encoder)
        allow_from = self.head.calibration.allow_from if self.head else 0.0
        return verdicts(read.severest(logits), read.totals(times), allow_from, read.crises)

    @torch.inference_mode()
    def continuations(self, context: str, choices: Sequence[str]) -> list[float]:
        """Return log P(choice | context) for each choice, as `Engine` does."""
        shared, tails = self.encoder.continuation_ids(context, choices)
        if not any(tails):
            return [0.0] * len(tails)
        cache, device = DynamicCache(config=self.model.config), self.model.device
        known = torch.tensor([shared], device=device)
        ids, mask = (side.to(device) for side in pad(tails, value=self.tokenizer.pad_token_id))
        options = {"past_key_values": cache, "use_cache": True}
        first = self.model(input_ids=known, logits_to_keep=1, **options).logits
        logits = first.expand(len(tails), -1, -1)
        if ids.shape[1] > 1:
            cache.batch_repeat_interleave(len(tails))
            seen = torch.cat([mask.new_ones(len(tails), len(shared)), mask[:, :-1]], dim=1)
            rest = self.model(input_ids=ids[:, :-1], attention_mask=seen, **options).logits
            logits = torch.cat([logits, rest], dim=1)
        scores = torch.log_softmax(logits.float(), -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        return scores.masked_fill(mask == 0, 0.0).sum(1).tolist()

    def prompt_tokens(self, prompt: str) -> int:
        """Count the tokens of a prompt, chat form included."""
        return len(self.encoder.ids(prompt))

    def close(self) -> None:
        """Do nothing: the model goes with its last reference."""

    def _timed(self, rows: list[list[int]]) -> tuple[list[list[float]], float]:
        """Return the decisions' logits of each row, and the milliseconds that a row took."""
        begun = time.perf_counter()
        ids, mask = pad(rows, value=self.tokenizer.pad_token_id)
        with autocast(self.products, self.model.device):
            batch = self._batch(ids.to(self.model.device), mask.to(self.model.device))
        logits = batch.float().cpu().tolist()
        return logits, 1000 * (time.perf_counter() - begun) / len(rows)

    def _batch(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(batch, 4) logits of the decisions."""
        if self.head:
            read = self.model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
            return self.head.head.logits(self.model, read.last_hidden_state, mask)
        last = self._last_states(ids, mask)
        letters = [
            self.tokenizer(letter, add_special_tokens=False)["input_ids"][-1] for letter in _LETTERS
        ]
        return vocabulary_logits(self.model, last)[:, letters]

    def _last_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(batch, d) states at each row's end; what all rows begin with is read once."""
        decoder, cache = self.model.get_decoder(), DynamicCache(config=self.model.config)
        ends = mask.sum(1) - 1
        alike = int((ids == ids[0]).all(0).cumprod(0).sum())
        shared = min(alike, int(ends.min()))
        if shared:
            decoder(input_ids=ids[:1, :shared], past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(ids))
        hidden = decoder(
            input_ids=ids[:, shared:], attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state
        return hidden[torch.arange(len(ids), device=ids.device), ends - shared]
