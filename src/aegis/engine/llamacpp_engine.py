"""The GGUF engine: llama.cpp in this process decides and thinks for many at once; no transformers
weights are loaded."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aegis.engine.batching import Batcher
from aegis.engine.llamacpp import GgufModel, require_package
from aegis.engine.llamacpp_jobs import DecideJob, ReadJob, SequenceJob, WeighJob, WriteJob
from aegis.engine.protocol import ThinkingRequest
from aegis.engine.readings import Readings
from aegis.engine.response_grammar import ResponseGrammar
from aegis.engine.response_sampler import allowed_tokens
from aegis.engine.verdict import CalibratedHead, Verdict, verdicts
from aegis.errors import AegisError, ModelError
from aegis.model.base import ModelFolder
from aegis.model.heads import DecisionHead
from aegis.model.prompt import PromptEncoder, common_prefix, disable_word_cache
from aegis.model.tags import known_tags
from aegis.model.token_head import TokenHead, folded_head
from aegis.protocol.decisions import TOKENS
from aegis.protocol.thinking import TAGS, Thinking

# Tokens a step: enough for the matrix products, few enough that nobody waits long for a token.
_STEP = 256
_READERS = 4  # prompts decided about at once; a step is full with them
_CELLS = 512  # a slot's share of the cache: an ordinary prompt and its response
_CONTEXT = 4096  # most tokens of one request, unless asked for more
_LATER_PART = re.compile(r"-(?!00001-)\d{5}-of-\d{5}\.gguf$")


class LlamaCppEngine:
    """Decides and thinks with a GGUF file; the heads, the calibration and the tokenizer are those
    of the model folder.

    Each method is as in `Engine`: what transformers gives, up to what rounding in llama.cpp
    changes. Every method may be called from many threads.

    Args:
        model: loaded; opened here, and closed with the engine.
        context: most tokens of a prompt and its response.
        slots: responses written at once; what comes on top waits.
        threads: for the matrix products.
    """

    def __init__(
        self,
        model: GgufModel,
        tokenizer: Any,
        head: CalibratedHead,
        *,
        context: int,
        slots: int,
        threads: int,
    ) -> None:
        self.name, self.context, self.head = model.file.stem, context, head
        self.encoder = PromptEncoder(tokenizer, head.head.system_prompt, context)
        self.grammar = ResponseGrammar(tokenizer, known_tags(tokenizer))
        disable_word_cache(tokenizer)
        allowed = allowed_tokens(tokenizer, width=model.vocabulary)
        self._banned = frozenset(torch.nonzero(~allowed).flatten().tolist())
        prefix = shared_prefix(self.encoder)[: context - 1]
        # The slots' ordinary requests, or one as long as the context; and decisions.
        room = (max(context, slots * _CELLS), context)
        cells, sequences = len(prefix) + sum(room), 1 + slots + _READERS
        model.open(cells=cells, step=_STEP, threads=threads, sequences=sequences)
        self._batcher = Batcher(model, prefix=prefix, slots=slots, readers=_READERS, room=room)

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
            threads: as many as torch takes by default.
            context: by default what the model was trained for, 4096 at most.

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
        source = ModelFolder(folder)
        tokenizer = source.load_tokenizer()
        width = source.read_config().get_text_config().hidden_size
        if not (own := folded_head(folder, tokenizer, width=width)):
            raise ModelError(
                f"{folder}: has no decision head; "
                "give a model that `aegis fold` or `aegis run` wrote"
            )
        head = CalibratedHead.load(folder, own)
        known_tags(tokenizer)
        model = GgufModel(file, gpu=True)
        try:
            _require_match(model, head.head, tokenizer, folder=folder)
            context = _context(model, context)
            threads = threads or torch.get_num_threads()
            engine = cls(model, tokenizer, head, context=context, slots=slots, threads=threads)
        except BaseException:
            model.close()
            raise
        engine.name = folder.resolve().name
        return engine

    def judge(self, prompts: Sequence[str]) -> list[Verdict]:
        """Decide as `Engine` does; `ms` is a prompt's share of the time this call took."""
        if not prompts:
            return []
        begun = time.perf_counter()
        read = Readings.of(prompts)
        rows = [self.encoder.fitting_ids(text) for text in read.texts]
        head = self.head.head
        if isinstance(head, TokenHead):
            logits = np.stack(self._run([DecideJob(row, head.ids) for row in rows]))
        else:
            pooled = np.stack(self._run([ReadJob(row, head.pooling) for row in rows]))
            logits = self.head.from_pooled(pooled)
        if not np.isfinite(logits).all():
            raise AegisError(
                "the GGUF file gives hidden states that are not finite; "
                "export the model as f32 or bf16"
            )
        logits = read.severest(self.head.calibrated(logits, read.texts, self.encoder))
        share = 1000 * (time.perf_counter() - begun) / len(prompts)
        allow_from = self.head.calibration.allow_from
        return verdicts(logits, [share] * len(prompts), allow_from, read.crises)

    def think(self, requests: Sequence[ThinkingRequest]) -> list[Thinking | None]:
        """Write responses as `Engine` does; `cancelled` is asked at every step."""
        jobs = []
        for request in requests:
            room = request.sampling.limits.total
            ids = self.encoder.fitting_ids(request.prompt, room=room)
            jobs.append(WriteJob(ids, request, self.grammar, self._banned))
        return [response and response.usable_thinking() for response in self._run(jobs)]

    def continuations(self, context: str, choices: Sequence[str]) -> list[float]:
        return self._run([WeighJob(*self.encoder.continuation_ids(context, choices))])[0]

    def prompt_tokens(self, prompt: str) -> int:
        return len(self.encoder.ids(prompt))

    @property
    def written(self) -> int:
        """Tokens of all finished responses, tags included."""
        return self._batcher.written

    def close(self) -> None:
        """Take the model out of memory; who still waits for an answer gets an AegisError."""
        self._batcher.close()

    def _run(self, jobs: Sequence[SequenceJob]) -> list[Any]:
        self._batcher.ask(jobs)
        return [job.future.result() for job in jobs]


def find_gguf(folder: Path) -> Path:
    """Return the largest GGUF file in `folder`/gguf and `folder`; of one in parts, the first."""
    files = [path for place in (folder / "gguf", folder) for path in sorted(place.glob("*.gguf"))]
    files = [path for path in files if not _LATER_PART.search(path.name)]
    if not files:
        raise ModelError(
            f"{folder}: holds no GGUF file; "
            "export the model to GGUF first, or serve it with --engine hf"
        )
    return max(files, key=lambda path: path.stat().st_size)


def shared_prefix(encoder: PromptEncoder) -> list[int]:
    """Return what prompts begin with whatever their words: their form and the system text."""
    return common_prefix([encoder.ids(words) for words in ("A", "7")])


def _require_match(model: GgufModel, head: DecisionHead, tokenizer: Any, *, folder: Path) -> None:
    if model.recurrent:
        raise ModelError(
            f"{model.file}: is a recurrent model, whose sequences cannot share a prompt; "
            "serve the folder itself"
        )
    if head.features != model.width:
        raise ModelError(
            f"{model.file}: is {model.width} wide, the decision head of {folder} "
            f"{head.features}; export that folder again"
        )
    tags = known_tags(tokenizer)
    expected = [*TAGS, *(TOKENS if tags.decisions else ())]
    if len(tokenizer) > model.vocabulary or list(map(model.spelling, tags.ids)) != expected:
        raise ModelError(f"{model.file}: has other tokens than {folder}; export that folder again")


def _context(model: GgufModel, asked: int | None) -> int:
    """Most tokens of one request."""
    if asked is not None and not 1 <= asked <= model.trained_context:
        raise ModelError(
            f"context must be in 1…{model.trained_context}, what the model was trained for, "
            f"got {asked}; correct it"
        )
    return asked or min(_CONTEXT, model.trained_context)
