"""llama.cpp in this process, through cyllama: tokens of many sequences in, hidden states and chosen
tokens out."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aegis.engine.llamacpp import error_lines
from aegis.errors import MissingPackageError, ModelError

_F32 = 0  # ggml.h, enum ggml_type; in llama.h, a file all in float32
_ALL_LAYERS = 999


@dataclass(frozen=True, slots=True)
class Input:
    """One token of a sequence; with `output` its hidden state and logits can be asked for after the
    step."""

    token: int
    position: int
    sequence: int
    output: bool


class Llama:
    """A GGUF file; once opened, with a context over it. Not thread-safe: one thread owns it.

    Args:
        file: the GGUF file; its weights are mapped, not copied.

    Raises:
        MissingPackageError: if cyllama is not installed.
        ModelError: if llama.cpp cannot load the file.
    """

    def __init__(self, file: Path) -> None:
        require_package()
        import cyllama.llama.llama_cpp as llama  # pyright: ignore[reportMissingImports]

        self._llama: Any = llama
        self.file, self.step = file, 0
        if not file.is_file():
            raise ModelError(
                f"{file}: no such file; export the model to GGUF, or give one of the files that are there"
            )
        parameters = llama.LlamaModelParams()
        parameters.n_gpu_layers = _ALL_LAYERS if llama.llama_supports_gpu_offload() else 0
        with _explained(f"{file}: llama.cpp cannot load it", "export it again"):
            self._model: Any = llama.LlamaModel(str(file), parameters)
        self._vocabulary: Any = self._model.get_vocab()
        self.width: int = self._model.n_embd
        self.vocabulary: int = self._vocabulary.n_vocab
        self.trained_context: int = self._model.n_ctx_train
        self._context: Any = None
        self._batch: Any = None
        if self._model.is_recurrent() or self._model.is_hybrid():
            raise ModelError(
                f"{file}: is a recurrent model, whose sequences cannot share a prompt; serve the folder itself"
            )

    def open(self, *, sequences: int, cells: int, step: int, threads: int) -> None:
        """Make room for sequences. One pool of cells serves all; a cell holds what attention keeps
        of one token.

        Args:
            sequences: how many can be kept apart.
            cells: how many tokens can be kept altogether.
            step: the most tokens that one `read` may have.
            threads: for the matrix products.

        Raises:
            ModelError: if there is no memory for them.
        """
        settings = self._llama.LlamaContextParams()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = cells, step, step
        settings.n_seq_max, settings.kv_unified = sequences, True
        settings.n_threads = settings.n_threads_batch = threads
        settings.embeddings, settings.pooling_type = (
            True,
            0,
        )  # every token's own hidden state, after the last norm
        if self._model.metadata().get("general.file_type") == str(
            _F32
        ):  # flash attention would round to float16
            settings.type_k = settings.type_v = _F32
            settings.flash_attn_type = 0
        with _explained(
            f"{self.file}: llama.cpp cannot keep {cells} tokens",
            "ask for fewer slots or a smaller context",
        ):
            self._context = self._llama.LlamaContext(self._model, settings)
        self._batch = self._llama.LlamaBatch(n_tokens=step, embd=0, n_seq_max=1)
        self.step = step

    def text(self, token: int) -> str:
        """The token as the file spells it."""
        return self._vocabulary.get_text(token)

    def read(self, inputs: Iterable[Input]) -> None:
        """Read one step's tokens; what they gave can be asked for by their index until the next
        step.

        Raises:
            RuntimeError, ValueError: if llama.cpp gives up.
        """
        self._batch.clear()
        for one in inputs:
            self._batch.add(one.token, one.position, [one.sequence], one.output)
        self._context.decode(self._batch)

    def hidden(self, indices: Sequence[int]) -> np.ndarray:
        """(n, d) float32: the last hidden states of the step's tokens at these indices."""
        return np.array(
            [self._context.get_embeddings_ith(index) for index in indices], dtype=np.float32
        )

    def sampler(self, banned: Sequence[int], *, temperature: float, seed: int) -> Any:
        """What `pick` chooses by: never one of `banned`; the most probable token at temperature 0.

        Args:
            seed: in [0, 2³² − 1), of this sampler's own generator.
        """
        chain = self._llama.LlamaSampler(self._llama.LlamaSamplerChainParams())
        chain.add_logit_bias(self.vocabulary, [(token, float("-inf")) for token in banned])
        if temperature == 0:
            chain.add_greedy()
        else:
            chain.add_temp(temperature)
            chain.add_dist(seed)
        return chain

    def pick(self, sampler: Any, index: int) -> int:
        """The token to follow the step's token at this index."""
        return sampler.sample(self._context, index)

    def share(self, source: int, target: int, *, tokens: int) -> None:
        """The first `tokens` of `source` are the beginning of `target` too, without a copy."""
        self._context.memory_seq_cp(source, target, 0, tokens)

    def forget(self, sequence: int) -> None:
        """The sequence is empty, and the cells that no other one shares are free."""
        self._context.memory_seq_rm(sequence, -1, -1)

    def clear(self) -> None:
        """Every sequence is empty."""
        self._context.kv_cache_clear()

    def close(self) -> None:
        """The memory is given back."""
        for part in (self._batch, self._context, self._model):
            if part is not None:
                part.close()


@contextlib.contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    """Where llama.cpp fails, what it said first is in the message."""
    with error_lines() as lines:
        try:
            yield
        except Exception as error:  # cyllama raises what it likes
            reason = lines[0] if lines else str(error).splitlines()[0]
            raise ModelError(f"{what} ({reason}); {remedy}") from error


def require_package() -> None:
    """cyllama is installed.

    Raises:
        MissingPackageError: if it is not.
    """
    if importlib.util.find_spec("cyllama") is None:
        raise MissingPackageError(
            "serving a GGUF file needs cyllama; run: pip install 'aegis-so8t[gguf-serve]', or serve with --engine hf"
        )
