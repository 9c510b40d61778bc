"""llama.cpp in this process, through cyllama: text to tokens, tokens of many sequences to hidden
states, logits and chosen tokens; files quantised."""

from __future__ import annotations

import contextlib
import importlib.util
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aegis.errors import AegisError, MissingPackageError, ModelError

_F32 = 0  # ggml.h, enum ggml_type; in llama.h, a file all in float32
_ERROR = 4  # ggml.h, GGML_LOG_LEVEL_ERROR
_ALL_LAYERS = 999
# llama.h, enum llama_ftype. What the converter writes itself has no number here.
FTYPES = {
    "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_0": 8, "Q4_K_M": 15, "Q4_K_S": 14,
    "Q4_0": 2, "Q3_K_M": 12, "Q2_K": 10,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class InputToken:
    """One token of a sequence; with `output` its hidden state and logits can be asked for after the
    step."""

    token: int
    position: int
    sequence: int
    output: bool


class GgufModel:
    """A GGUF file; once opened, with a context over it. Not thread-safe: one thread owns it.

    Args:
        file: the GGUF file; its weights are mapped, not copied.
        gpu: hold the layers on the GPU, if there is one that llama.cpp can use.

    Raises:
        MissingPackageError: if cyllama is not installed.
        ModelError: if llama.cpp cannot load the file.
    """

    def __init__(self, file: Path, *, gpu: bool = False) -> None:
        require_package()
        import cyllama.llama.llama_cpp as llama  # pyright: ignore[reportMissingImports]

        class Model(llama.LlamaModel):
            @property
            def n_vocab(self) -> int:
                """What cyllama 0.2.18 asks the model for, and only its vocabulary knows."""
                return self.get_vocab().n_vocab

        self._llama: Any = llama
        self.file, self.step = file, 0
        if not file.is_file():
            raise ModelError(
                f"{file}: no such file; "
                "export the model to GGUF, or give one of the files that are there"
            )
        parameters = llama.LlamaModelParams()
        offload = gpu and llama.llama_supports_gpu_offload()
        parameters.n_gpu_layers = _ALL_LAYERS if offload else 0
        with explained(f"{file}: llama.cpp cannot load it", "; export it again", kind=ModelError):
            self._model: Any = Model(str(file), parameters)
        self._vocabulary: Any = self._model.get_vocab()
        self.width: int = self._model.n_embd
        self.vocabulary: int = self._vocabulary.n_vocab
        self.trained_context: int = self._model.n_ctx_train
        self.recurrent: bool = self._model.is_recurrent() or self._model.is_hybrid()
        self._context: Any = None
        self._batch: Any = None

    def open(self, *, cells: int, step: int, threads: int, sequences: int = 1) -> None:
        """Make room for sequences, which share one pool of cells.

        Args:
            cells: how many tokens can be kept altogether.
            step: the most tokens that one `read` may have.
            threads: for the matrix products.
            sequences: how many can be kept apart.

        Raises:
            ModelError: if there is no memory for them.
        """
        settings = self._llama.LlamaContextParams()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = cells, step, step
        settings.n_seq_max, settings.kv_unified = sequences, True
        settings.n_threads = settings.n_threads_batch = threads
        settings.embeddings = True  # every token's own hidden state, after the last norm
        settings.pooling_type = 0
        if self.metadata("general.file_type") == str(_F32):
            settings.type_k = settings.type_v = _F32
            settings.flash_attn_type = 0  # which would round to float16
        with explained(
            f"{self.file}: llama.cpp cannot keep {cells} tokens",
            "; ask for fewer slots or a smaller context",
            kind=ModelError,
        ):
            self._context = self._llama.LlamaContext(self._model, settings)
        self._batch = self._llama.LlamaBatch(n_tokens=step, embd=0, n_seq_max=1)
        self.step = step

    def metadata(self, key: str) -> str | None:
        """Return a metadata value as text; None where the file has none."""
        return self._model.metadata().get(key)

    def spelling(self, token: int) -> str:
        """Return the token as the file spells it."""
        return self._vocabulary.get_text(token)

    def special_id(self, name: str) -> int:
        """Return the id of the token that begins, ends or pads a text: `bos`, `eos` or `pad`."""
        return getattr(self._vocabulary, f"token_{name}")()

    def tokens(self, text: str, *, special: bool) -> list[int]:
        """Return token ids, markers in the text read as such; with `special`, what the tokenizer
        puts around a text of its own accord, too."""
        return list(self._vocabulary.tokenize(text, special, True))

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, markers left out."""
        return self._vocabulary.detokenize(list(ids), False, False)

    def ends(self, token: int) -> bool:
        """Return whether a text is over with this token."""
        return self._vocabulary.is_eog(token)

    def read(self, inputs: Iterable[InputToken]) -> None:
        """Read one step's tokens; what they gave can be asked for by their index until the next
        step. Raises what cyllama likes if llama.cpp gives up."""
        self._batch.clear()
        for one in inputs:
            self._batch.add(one.token, one.position, [one.sequence], one.output)
        self._context.decode(self._batch)

    def hidden(self, indices: Sequence[int]) -> np.ndarray:
        """(n, d) float32: the last hidden states of the step's tokens at these indices."""
        rows = [self._context.get_embeddings_ith(index) for index in indices]
        return np.array(rows, dtype=np.float32)

    def logits(self, indices: Sequence[int]) -> np.ndarray:
        """(n, vocabulary) float32: the logits behind the step's tokens at these indices."""
        rows = np.empty((len(indices), self.vocabulary), dtype=np.float32)
        for row, index in zip(rows, indices, strict=True):
            # cyllama gives a list; array is the fastest way out of one
            row[:] = array("f", self._context.get_logits_ith(index))
        return rows

    def text_logits(self, ids: Sequence[int], part: slice = slice(None)) -> np.ndarray:
        """(positions, vocabulary) float32 of a text read alone, of the positions in `part`."""
        wanted = range(len(ids))[part]
        self.clear()
        with explained("llama.cpp cannot compute the logits", lines=slice(-2, None)):
            self.read(
                InputToken(token, place, 0, place in wanted) for place, token in enumerate(ids)
            )
        return self.logits(wanted)

    def sampler(self, banned: Sequence[int], *, temperature: float, top_p: float, seed: int) -> Any:
        """Return what `pick` chooses by: never one of `banned`; the most probable token at
        temperature 0; `seed` in [0, 2³² - 1)."""
        chain = self._llama.LlamaSampler(self._llama.LlamaSamplerChainParams())
        chain.add_logit_bias(self.vocabulary, [(token, float("-inf")) for token in banned])
        if temperature == 0:
            chain.add_greedy()
        else:
            chain.add_temp(temperature)
            chain.add_top_p(top_p, 1)
            chain.add_dist(seed)
        return chain

    def pick(self, sampler: Any, index: int) -> int:
        """Choose the token to follow the step's token at this index."""
        return sampler.sample(self._context, index)

    def share(self, source: int, target: int, *, tokens: int) -> None:
        """Let `target` begin with the first `tokens` of `source`, without a copy."""
        self._context.memory_seq_cp(source, target, 0, tokens)

    def forget(self, sequence: int, *, after: int = -1) -> None:
        """Empty the sequence, or cut it to its first `after` tokens; cells that no other one shares
        are free."""
        self._context.memory_seq_rm(sequence, after, -1)

    def clear(self) -> None:
        """Empty every sequence."""
        self._context.kv_cache_clear()

    def close(self) -> None:
        """Give the memory back."""
        for part in (self._batch, self._context, self._model):
            if part is not None:
                part.close()


def quantise(source: Path, target: Path, *, kind: str, threads: int) -> None:
    """Write `target`, of a type in `FTYPES`, from an f16 file, tensor by tensor."""
    import cyllama.llama.llama_cpp as llama  # pyright: ignore[reportMissingImports]

    parameters = llama.LlamaModelQuantizeParams()
    parameters.ftype, parameters.nthread = FTYPES[kind], threads
    with explained(f"{kind}: llama.cpp cannot quantise the model", lines=slice(-2, None)):
        llama.model_quantize(str(source), str(target), parameters)


@contextlib.contextmanager
def explained(
    failure: str, remedy: str = "", *, kind: type[AegisError] = AegisError, lines: slice = slice(1)
) -> Iterator[None]:
    """Raise what goes wrong inside as `kind`, with llama.cpp's own error lines in the message; its
    log stays off the screen.

    Args:
        lines: which of its error lines; the first says why a file cannot be loaded.
    """
    import cyllama.llama.llama_cpp as llama  # pyright: ignore[reportMissingImports]

    logged: list[str] = []

    def log(level: int, text: str) -> None:
        if level == _ERROR and text.strip():
            logged.append(text.strip())

    llama.set_log_callback(log)
    try:
        yield
    except Exception as error:  # cyllama raises what it likes
        reason = "; ".join(logged[lines]) or str(error).partition("\n")[0]
        raise kind(f"{failure} ({reason}){remedy}") from error
    finally:
        llama.disable_logging()


def require_package() -> None:
    """Raise MissingPackageError unless cyllama is installed."""
    if importlib.util.find_spec("cyllama") is None:
        raise MissingPackageError(
            "serving a GGUF file needs cyllama; "
            "run: pip install 'aegis-so8t[gguf-serve]', or serve with --engine hf"
        )
