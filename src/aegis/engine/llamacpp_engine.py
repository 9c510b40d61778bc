"""The GGUF engine: llama.cpp in this process decides and thinks for many at once; no transformers
weights are loaded."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aegis.engine.batching import Batcher, Reading, Writing, common
from aegis.engine.judge import Verdict
from aegis.engine.llama import Llama, require_package
from aegis.engine.protocol import forget_words
from aegis.engine.response_grammar import Limits, PartialResponse, ResponseGrammar
from aegis.engine.response_sampler import allowed_tokens
from aegis.errors import AegisError, DataError, ModelError
from aegis.model.base import ModelFolder
from aegis.model.calibration import Calibration, is_spelled, probabilities
from aegis.model.heads import DECISION_HEAD_FILE, DecisionHead
from aegis.model.lexical import LexicalHead
from aegis.model.prompt import prompt_ids, require_fit
from aegis.model.tags import Tags, known_tags
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import TAGS, Thinking

_STEP = 256  # tokens a step: enough for the matrix products, few enough that nobody waits long for a token
_READERS = 4  # prompts decided about at once; a step is full with them
_CELLS = 512  # a slot's share of the cache: an ordinary prompt and its response
_CONTEXT = 4096  # most tokens of one request, unless asked for more
_LATER_PART = re.compile(r"-(?!00001-)\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True)
class NumpyHead:
    """The decision head without torch; the same arithmetic in float32.

    Args:
        mean, scale: (width,) of the pooled hidden state. weight: (4, width). bias: (4,).
    """

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def of(cls, head: DecisionHead) -> NumpyHead:
        tensors = (head.mean, head.scale, head.linear.weight, head.linear.bias)
        return cls(*(tensor.detach().float().numpy() for tensor in tensors))

    def logits(self, pooled: np.ndarray) -> np.ndarray:
        """(n, width) pooled hidden states → (n, 4) logits."""
        return (pooled - self.mean) / self.scale @ self.weight.T + self.bias


class LlamaCppEngine:
    """Decides and thinks with a GGUF file; the heads, the calibration and the tokenizer are those
    of the model folder.

    Decisions are those of `aegis.engine.judge`, responses those of `aegis.engine.response_sampler`, up to
    what rounding in llama.cpp changes. Every method may be called from many threads.
    """

    name = "gguf"

    def __init__(
        self,
        batcher: Batcher,
        head: DecisionHead,
        *,
        model: str,
        context: int,
        lexical: LexicalHead | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.model, self.context, self.tokenizer = model, context, batcher.writer.tokenizer
        self.pooling, self.system, self.head = head.pooling, head.system_prompt, NumpyHead.of(head)
        self.lexical, self.calibration = lexical, calibration or Calibration()
        forget_words(self.tokenizer)
        self._batcher = batcher
        self._tokenizing = threading.Lock()

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        file: Path | None = None,
        threads: int | None = None,
        slots: int = 8,
        context: int | None = None,
    ) -> LlamaCppEngine:
        """Read a model folder and its GGUF file; everything small is checked before the weights are
        touched.

        Args:
            file: the GGUF file; by default the largest in `folder`/gguf and `folder`, which is the
                most exact one.
            threads: for the matrix products; as many as torch takes by default.
            slots: responses written at once; what comes on top waits.
            context: most tokens of a prompt and its response; by default what the model was trained
                for, 4096 at most.

        Raises:
            ModelError: if the folder or the file cannot be used, or they do not belong together.
            MissingPackageError: if cyllama is not installed.
        """
        if slots < 1:
            raise ModelError(
                f"slots must be >= 1, got {slots}; give how many responses may be written at once"
            )
        if not folder.is_dir():
            raise ModelError(
                f"{folder}: no such model folder; give one that `aegis fold` or `aegis run` wrote"
            )
        require_package()
        file = file or find_gguf(folder)
        if not (folder / DECISION_HEAD_FILE).is_file():
            raise ModelError(
                f"{folder}: has no decision head; give a model that `aegis fold` or `aegis run` wrote"
            )
        head, lexical, calibration = (
            DecisionHead.load(folder),
            LexicalHead.load(folder),
            Calibration.load(folder),
        )
        tokenizer = ModelFolder(folder).load_tokenizer()
        tags = known_tags(tokenizer)
        llama = Llama(file)
        try:
            _require_match(llama, head, tokenizer, tags, folder=folder)
            context = _context(llama, context)
            prefix = shared_prefix(tokenizer, head.system_prompt)[: context - 1]
            batcher = _start(
                llama,
                ResponseGrammar(tokenizer, tags),
                prefix,
                context,
                slots,
                threads or torch.get_num_threads(),
            )
        except BaseException:
            llama.close()
            raise
        return cls(
            batcher,
            head,
            model=folder.resolve().name,
            context=context,
            lexical=lexical,
            calibration=calibration,
        )

    def decide(self, prompts: Sequence[str]) -> list[Verdict]:
        """A verdict a prompt, in their order; `ms` is a prompt's share of the time this call took.

        Raises:
            DataError: if a prompt is longer than the context.
            AegisError: if the engine is closed, or the file's weights overflow.
        """
        if not prompts:
            return []
        begun = time.perf_counter()
        rows = [self._ids(prompt) for prompt in prompts]
        for row in rows:
            require_fit(row, limit=self.context, where="prompt")
        jobs = [Reading(row, self.pooling) for row in rows]
        for job in jobs:
            self._batcher.ask(job)
        logits = self.head.logits(np.stack([job.future.result() for job in jobs]))
        if not np.isfinite(logits).all():
            raise AegisError(
                "the GGUF file gives hidden states that are not finite; export the model as f32 or bf16"
            )
        with self._tokenizing:
            spelled = is_spelled(self.tokenizer, prompts)
        lexical = self.lexical.logits(prompts) if self.lexical else None
        found = probabilities(self.calibration.combine(logits, lexical, spelled))
        ms = round(1000 * (time.perf_counter() - begun) / len(prompts), 3)
        return [Verdict(Decision(int(row.argmax())), tuple(map(float, row)), ms) for row in found]

    def think(
        self,
        prompt: str,
        decision: Decision,
        *,
        limits: Limits,
        temperature: float,
        seed: int,
        cancelled: Callable[[], bool],
    ) -> Thinking | None:
        """One response that knows the decision; None where no usable one came out, or once
        `cancelled`, asked at every step, is true.

        Raises:
            DataError: if the prompt leaves no room for the response.
            AegisError: if the engine is closed, or llama.cpp gives up.
        """
        ids = self._ids(prompt)
        require_fit(ids, limit=self.context - limits.total, where="prompt")
        writer = self._batcher.writer
        row = PartialResponse(tuple(ids), limits, temperature, verdict=writer.verdicts[decision])
        job = Writing(row, seed, cancelled, [*ids, writer.begin(row)])
        self._batcher.ask(job)
        path = job.future.result()
        if path is None:
            return None
        try:
            return path.thinking()
        except DataError:
            return None

    @property
    def written(self) -> int:
        """Tokens of all finished responses, tags included."""
        return self._batcher.written

    def prompt_tokens(self, prompt: str) -> int:
        """Tokens of the prompt as the model reads it, chat form included."""
        return len(self._ids(prompt))

    def close(self) -> None:
        """The model is out of memory; who still waits for an answer gets an AegisError."""
        self._batcher.close()

    def _ids(self, prompt: str) -> list[int]:
        with self._tokenizing:
            return prompt_ids(self.tokenizer, prompt, system=self.system)


def find_gguf(folder: Path) -> Path:
    """The largest GGUF file in `folder`/gguf and `folder`; of one in parts, its first part.

    Raises:
        ModelError: if there is none.
    """
    found = [path for place in (folder / "gguf", folder) for path in sorted(place.glob("*.gguf"))]
    found = [path for path in found if not _LATER_PART.search(path.name)]
    if not found:
        raise ModelError(
            f"{folder}: holds no GGUF file; export the model to GGUF first, or serve it with --engine hf"
        )
    return max(found, key=lambda path: path.stat().st_size)


def _require_match(
    llama: Llama, head: DecisionHead, tokenizer: Any, tags: Tags, *, folder: Path
) -> None:
    if head.features != llama.width:
        raise ModelError(
            f"{llama.file}: is {llama.width} wide, the decision head of {folder} {head.features}; export that folder again"
        )
    if len(tokenizer) > llama.vocabulary or [llama.text(number) for number in tags.ids] != list(
        TAGS
    ):
        raise ModelError(f"{llama.file}: has other tokens than {folder}; export that folder again")


def _context(llama: Llama, asked: int | None) -> int:
    """Most tokens of one request."""
    if asked is not None and not 1 <= asked <= llama.trained_context:
        allowed = f"in 1…{llama.trained_context}, what the model was trained for"
        raise ModelError(f"context must be {allowed}, got {asked}; correct it")
    return asked or min(_CONTEXT, llama.trained_context)


def _start(
    llama: Llama, writer: ResponseGrammar, prefix: list[int], context: int, slots: int, threads: int
) -> Batcher:
    """A batcher with room for the slots' ordinary requests, or for one as long as the context, and
    for decisions."""
    room = (max(context, slots * _CELLS), context)
    llama.open(
        sequences=1 + slots + _READERS, cells=len(prefix) + sum(room), step=_STEP, threads=threads
    )
    banned = (
        torch.nonzero(~allowed_tokens(writer.tokenizer, width=llama.vocabulary)).flatten().tolist()
    )
    return Batcher(
        llama, writer, banned=banned, prefix=prefix, slots=slots, readers=_READERS, room=room
    )


def shared_prefix(tokenizer: Any, system: str | None) -> list[int]:
    """What prompts begin with whatever their words: their form and the system text."""
    first, second = (prompt_ids(tokenizer, words, system=system) for words in ("A", "7"))
    return first[: common(first, second)]
