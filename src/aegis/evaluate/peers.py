"""What a trained judge has to beat: a linear probe on the frozen base, and words alone.

Both decide about a prompt as it is written; neither knows readings, phrases of a crisis or a
threshold.
"""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from aegis.data.records import Record
from aegis.engine.verdict import Verdict, verdicts
from aegis.evaluate.metrics import macro_f1
from aegis.model.base import ModelFolder
from aegis.model.device import autocast, pick_device, quick_attention
from aegis.model.lexical import LexicalHead
from aegis.model.prompt import PromptEncoder, by_length, pad
from aegis.protocol.decisions import NAMES
from aegis.runs.reporter import bar
from aegis.storage.journal import Remember, compute_anew

PROBE, WORDS = "linear probe on the frozen base", "TF-IDF + logistic regression"
_STRENGTHS = (0.001, 0.003, 0.01, 0.03)  # inverse regularisation: few records, many dimensions
_LONGEST = 90  # tokens of a prompt that the probe learns from: longer ones cost most
_LEAST = 1e-9


@dataclass(frozen=True)
class StateReader:
    """A frozen model, read at a prompt's end, where a decision head reads it."""

    model: Any
    encoder: PromptEncoder
    batch_tokens: int = 2048

    @classmethod
    def load(cls, source: ModelFolder, system: str | None, *, batch_tokens: int) -> StateReader:
        """Load a model that is asked with this system text, or with none."""
        device = pick_device()
        loaded: Any = source.load_model(dtype=torch.float32, attention=quick_attention(device))
        encoder = PromptEncoder(source.load_tokenizer(), system)
        return cls(loaded.to(device), encoder, batch_tokens)

    def states(
        self, prompts: Sequence[str], *, label: str, remember: Remember = compute_anew
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (n, width) float32 states and the (n,) milliseconds that each took.

        Args:
            remember: gives the batches that were read before, as base64.
        """
        rows = [self.encoder.ids(prompt) for prompt in prompts]
        width = self.model.config.get_text_config().hidden_size
        states, times = np.zeros((len(rows), width), np.float32), np.zeros(len(rows))
        with bar(label, len(rows)) as advance:
            batches = by_length([len(row) for row in rows], batch_tokens=self.batch_tokens)
            for number, indices in enumerate(batches):
                read = partial(self._read, [rows[index] for index in indices])
                text, times[indices] = remember(f"{label} {number}", read)
                data = np.frombuffer(base64.b64decode(text), dtype=np.float32)
                states[indices] = data.reshape(len(indices), width)
                advance(len(indices))
        return states, times

    @torch.inference_mode()
    def _read(self, rows: list[list[int]]) -> tuple[str, float]:
        begun, device = time.perf_counter(), self.model.device
        ids, mask = (side.to(device) for side in pad(rows, value=0))
        with autocast("auto", device):
            decoder = self.model.get_decoder()
            hidden = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(rows), device=device), mask.sum(1) - 1].float().cpu()
        text = base64.b64encode(last.numpy().tobytes()).decode()
        return text, 1000 * (time.perf_counter() - begun) / len(rows)


def probe_verdicts(
    reader: StateReader,
    train: Sequence[Record],
    test: Sequence[Record],
    *,
    most: int,
    seed: int = 0,
    remember: Remember = compute_anew,
) -> tuple[list[Verdict], int] | None:
    """Return what a linear probe decides about `test`, and how many records it learned from.

    Args:
        most: records of `train` that it learns from; a fifth of them chooses its regularisation.
        remember: gives the batches that were read before.

    Returns:
        None if the records that it may learn from are of one decision.

    Source:
        Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016.
    """
    order = random.Random(f"peer:{seed}").sample(list(train), len(train))
    short = (each for each in order if len(reader.encoder.ids(each.prompt)) <= _LONGEST)
    chosen = [record for _, record in zip(range(most), short, strict=False)]
    labels = np.array([int(record.decision) for record in chosen])
    if len(set(labels.tolist())) < 2:
        return None
    name = "probing the base"
    known, _ = reader.states([r.prompt for r in chosen], label=name, remember=remember)
    asked, times = reader.states([r.prompt for r in test], label=f"{name}: test", remember=remember)
    mean, scale = known.mean(0), known.std(0) + 1e-6
    chances = _fitted_chances((known - mean) / scale, labels, (asked - mean) / scale)
    return verdicts(np.log(np.maximum(chances, _LEAST)), times), len(chosen)


def words_verdicts(head: LexicalHead, test: Sequence[Record]) -> list[Verdict]:
    """Return what the n-grams alone decide."""
    begun = time.perf_counter()
    logits = head.logits([record.prompt for record in test]).astype(float)
    each = 1000 * (time.perf_counter() - begun) / len(test)
    return verdicts(logits, np.full(len(test), each))


def fit_words(train: Sequence[Record], *, strength: float) -> LexicalHead:
    """Fit n-grams to records, as `model.lexical` does."""
    prompts = [record.prompt for record in train]
    return LexicalHead.fit(prompts, [int(r.decision) for r in train], strength=strength)


def _fitted_chances(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(n, d) standardised states, (n,) class ids, (m, d) → (m, 4) probabilities."""

    def fitted(rows: slice, strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=1000).fit(known[rows], labels[rows])

    part = len(labels) // 5
    held_out, rest, strength = slice(0, part), slice(part, None), _STRENGTHS[1]
    if part and len(set(labels[rest].tolist())) > 1:
        scores = {
            c: macro_f1(labels[held_out], np.asarray(fitted(rest, c).predict(known[held_out])))
            for c in _STRENGTHS
        }
        strength = max(scores, key=lambda c: scores[c])
    model = fitted(slice(None), strength)
    chances = np.zeros((len(asked), len(NAMES)))
    chances[:, model.classes_] = model.predict_proba(asked)
    return chances
