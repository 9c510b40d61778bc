"""Judges: prompts in, decisions with probabilities out. No text is generated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aegis.errors import AegisError, ModelError
from aegis.model.base import ModelFolder, context_length
from aegis.model.calibration import Calibration, is_spelled, probabilities
from aegis.model.device import autocast, pick_device, quick_attention
from aegis.model.heads import DECISION_HEAD_FILE, DecisionHead
from aegis.model.lexical import LexicalHead
from aegis.model.prompt import by_length, pad, prompt_ids, require_fit
from aegis.protocol.decisions import NAMES, Decision

_LETTERS = "ABCD"
_QUESTION = (
    "Request: {prompt}\nWhat should the assistant do?\nA. ALLOW, harmless\nB. ESCALATION, a human decides\n"
    "C. DENY, not permitted\nD. REFUSE, harmful or illegal\nAnswer with one letter."
)


@dataclass(frozen=True)
class Verdict:
    """One decision. `probabilities` sum to 1 in the order of the decisions; `ms` is this prompt's
    share of its batch."""

    decision: Decision
    probabilities: tuple[float, ...]
    ms: float

    def to_json(self) -> dict[str, Any]:
        probabilities = dict(zip(NAMES, self.probabilities, strict=True))
        return {"decision": self.decision.name, "probabilities": probabilities, "ms": self.ms}


class Judge:
    """Runs a model over prompts in batches of like length.

    With a decision head (a folder that `aegis fold` wrote), its logits decide, weighed against the
    lexical head's. A model without one is asked a multiple-choice question, and the likelihood of
    the four letters decides: the base's own judgement, with nothing learned.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        head: DecisionHead | None,
        lexical: LexicalHead | None = None,
        calibration: Calibration | None = None,
        batch_tokens: int = 2048,
    ) -> None:
        self.model, self.tokenizer, self.head = model, tokenizer, head
        self.lexical, self.calibration, self.batch_tokens = (
            lexical,
            calibration or Calibration(),
            batch_tokens,
        )
        self.context = context_length(model.config)
        self._letters = None if head else [_letter_id(tokenizer, letter) for letter in _LETTERS]

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
        config = source.read_config()
        head = DecisionHead.load(folder) if (folder / DECISION_HEAD_FILE).exists() else None
        width = config.get_text_config().hidden_size
        if head and head.features != width:
            raise ModelError(
                f"{folder}: the decision head is {head.features} wide, the model {width}; fold it again"
            )
        lexical, calibration = LexicalHead.load(folder) if head else None, Calibration.load(folder)
        tokenizer = source.load_tokenizer()
        device = pick_device()
        attention = quick_attention(device)
        model: Any = source.load_model(dtype=dtype, attention=attention)
        model, head = model.to(device), head.to(device) if head else None
        return cls(
            model,
            tokenizer,
            head=head,
            lexical=lexical,
            calibration=calibration,
            batch_tokens=batch_tokens,
        )

    @classmethod
    def beside(cls, folder: Path, model: Any, tokenizer: Any, head: DecisionHead | None) -> Judge:
        """A loaded model and its head, with the n-grams and the calibration of the folder that they
        are from."""
        lexical, calibration = LexicalHead.load(folder), Calibration.load(folder)
        return cls(model, tokenizer, head=head, lexical=lexical, calibration=calibration)

    @torch.inference_mode()
    def logits(
        self,
        prompts: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (n, 4) calibrated logits, and (n,) milliseconds a prompt.

        Args:
            names: how error messages call each prompt.
            on_batch: called with the number of prompts just done.

        Raises:
            DataError: if a prompt is longer than the model's context.
        """
        rows = [self._ids(prompt) for prompt in prompts]
        for index, row in enumerate(rows):
            require_fit(
                row, limit=self.context, where=names[index] if names else f"prompt {index + 1}"
            )
        logits = np.zeros((len(rows), len(NAMES)))
        times = np.zeros(len(rows))
        for indices in by_length([len(row) for row in rows], batch_tokens=self.batch_tokens):
            begun = time.perf_counter()
            ids, mask = pad([rows[index] for index in indices], value=self.tokenizer.pad_token_id)
            with autocast("auto", self.model.device):
                found = self._batch(ids.to(self.model.device), mask.to(self.model.device))
            logits[indices] = found.float().cpu().numpy()
            times[indices] = 1000 * (time.perf_counter() - begun) / len(indices)
            on_batch(len(indices))
        if not np.isfinite(logits).all():
            raise AegisError(
                f"the model gives logits that are not finite in {self.model.dtype}; fold it in float32"
            )
        if not self.head or not prompts:
            return logits, times
        lexical = self.lexical.logits(prompts) if self.lexical else None
        return self.calibration.combine(logits, lexical, is_spelled(self.tokenizer, prompts)), times

    def decide(
        self,
        prompts: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> list[Verdict]:
        """The most probable decision for each prompt, in their order."""
        logits, times = self.logits(prompts, names=names, on_batch=on_batch)
        rows = zip(probabilities(logits), times, strict=True)
        return [
            Verdict(Decision(int(row.argmax())), tuple(map(float, row)), round(float(ms), 3))
            for row, ms in rows
        ]

    def _ids(self, prompt: str) -> list[int]:
        if self.head:
            return prompt_ids(self.tokenizer, prompt, system=self.head.system_prompt)
        return prompt_ids(self.tokenizer, _QUESTION.format(prompt=prompt), system=None)

    def _batch(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.model.get_decoder()(
            input_ids=ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        if self.head:
            return self.head(hidden, mask)
        last = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]
        return self.model.get_output_embeddings()(last)[:, self._letters]


def _letter_id(tokenizer: Any, letter: str) -> int:
    return tokenizer(letter, add_special_tokens=False)["input_ids"][-1]
