"""llama.cpp in this process, through cyllama: tokenize, logits, quantise."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aegis.engine.llamacpp import error_lines
from aegis.errors import AegisError

# llama.h, enum llama_ftype. What the converter writes itself has no number here.
FTYPES = {
    "Q8_0": 7,
    "Q6_K": 18,
    "Q5_K_M": 17,
    "Q5_K_S": 16,
    "Q5_0": 8,
    "Q4_K_M": 15,
    "Q4_K_S": 14,
    "Q4_0": 2,
    "Q3_K_M": 12,
    "Q2_K": 10,
}


class Gguf:
    """A GGUF file as llama.cpp runs it on the CPU: its tokenizer and its logits.

    Args:
        context: the longest text, in tokens.
        threads: for the matrix products.

    Raises:
        AegisError: if llama.cpp cannot load the file.
    """

    def __init__(self, path: Path, *, context: int = 32, threads: int = 1) -> None:
        import cyllama.llama.llama_cpp as llama

        parameters = llama.LlamaModelParams()
        parameters.n_gpu_layers = 0
        with _told(f"{path.name}: llama.cpp cannot load it"):
            self._model: Any = _model_class()(str(path), parameters)
        self.vocabulary: Any = self._model.get_vocab()
        settings = llama.LlamaContextParams()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context
        settings.n_threads = settings.n_threads_batch = threads
        with _told(f"{path.name}: llama.cpp cannot run it"):
            self._context: Any = llama.LlamaContext(self._model, settings)
        self._batch: Any = llama.LlamaBatch(n_tokens=context, embd=0, n_seq_max=1)

    def metadata(self, key: str) -> str | None:
        """A metadata value as text; None where the file has none."""
        return self._model.metadata().get(key)

    def tokens(self, text: str, *, special: bool) -> list[int]:
        """Token ids, markers in the text read as such.

        Args:
            special: add what the tokenizer puts around a text of its own accord.
        """
        return list(self.vocabulary.tokenize(text, special, True))

    def logits(self, ids: Sequence[int], part: slice = slice(None)) -> Tensor:
        """(positions, vocabulary) float32, of the positions in `part`."""
        wanted = range(len(ids))[part]
        self._context.kv_cache_clear()
        self._batch.clear()
        for position, token in enumerate(ids):
            self._batch.add(token, position, [0], position in wanted)
        with _told("llama.cpp cannot compute the logits"):
            self._context.decode(self._batch)
        rows = torch.empty(len(wanted), self.vocabulary.n_vocab)
        for row, position in zip(
            rows, wanted, strict=True
        ):  # cyllama gives a list; array is the fastest way out of one
            row[:] = torch.frombuffer(
                array("f", self._context.get_logits_ith(position)), dtype=torch.float32
            )
        return rows

    def close(self) -> None:
        """The memory is given back."""
        for part in (self._batch, self._context, self._model):
            part.close()


def quantise(source: Path, target: Path, *, kind: str, threads: int) -> None:
    """Write `target`, of a type in `FTYPES`, from an f16 file, tensor by tensor.

    Raises:
        AegisError: if llama.cpp gives up.
    """
    import cyllama.llama.llama_cpp as llama

    parameters = llama.LlamaModelQuantizeParams()
    parameters.ftype, parameters.nthread = FTYPES[kind], threads
    with _told(f"{kind}: llama.cpp cannot quantise the model"):
        llama.model_quantize(str(source), str(target), parameters)


def _model_class() -> Any:
    import cyllama.llama.llama_cpp as llama

    class Model(llama.LlamaModel):
        @property
        def n_vocab(self) -> int:
            """cyllama 0.2.18 asks the model for what only its vocabulary knows when it is to hand
            over logits."""
            return self.get_vocab().n_vocab

    return Model


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Where llama.cpp fails, its last error lines are in the message."""
    with error_lines() as lines:
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            raise AegisError(f"{what} ({'; '.join(lines[-2:]) or error})") from error
