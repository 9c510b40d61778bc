"""The folded model's own logits in float32, with one decoder layer in memory at a time.

A model whose GGUF fits an ordinary machine may not fit it in float32. What is kept is each probe's
last hidden states and lm_head, from which logits are one matrix product away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from aegis.export.roundtrip import weight_files, weights_in
from aegis.model.base import ModelFolder
from aegis.model.device import release_memory
from aegis.model.lm_head import vocabulary_logits
from aegis.model.prompt import by_length, pad
from aegis.runs.reporter import bar

_BATCH_TOKENS = 1024


class Reference:
    """Answers for the model in a Hugging Face folder: `logits(i, part)` are those of a part of the
    i-th row of token ids.

    Args:
        rows: token ids of each text.

    Raises:
        ModelError: if the folder holds no model.
    """

    def __init__(self, folder: Path, rows: Sequence[list[int]]) -> None:
        self.rows = [list(row) for row in rows]
        self._stored = _Stored(folder)
        self._model = streamed(folder)
        self._hidden = self._read()
        table, head = (
            self._model.get_input_embeddings().weight,
            self._model.get_output_embeddings().weight,
        )
        name = next(name for name, parameter in self._model.named_parameters() if parameter is head)
        self._head = (
            name if name in self._stored.files else None
        )  # None: it stays, as all of a model that is loaded whole
        for shared in (
            {table, head} if self._head else {table} - {head}
        ):  # they have done their work
            _fill(self._model, "", torch.empty(0), shared=shared)
        release_memory()

    @contextmanager
    def head(self) -> Iterator[None]:
        """lm_head is in memory within."""
        if self._head:
            self._fill_head(self._stored(self._head))
        try:
            yield
        finally:
            if self._head:
                self._fill_head(torch.empty(0))

    def _fill_head(self, tensor: Tensor) -> None:
        _fill(self._model, "", tensor, shared=self._model.get_output_embeddings().weight)

    def logits(self, index: int, part: slice) -> Tensor:
        """(tokens, vocabulary) float32."""
        with torch.inference_mode():
            return vocabulary_logits(self._model, self._hidden[index][part]).float()

    @torch.inference_mode()
    def _read(self) -> list[Tensor]:
        hidden: list[Tensor] = [torch.empty(0)] * len(self.rows)
        with bar("reading the probes", len(self.rows)) as advance:
            for batch in by_length([len(row) for row in self.rows], batch_tokens=_BATCH_TOKENS):
                # Padding comes last and attention looks back only, so that no mask is needed.
                ids, _ = pad([self.rows[index] for index in batch], value=0)
                states = self._model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
                for place, index in enumerate(batch):
                    hidden[index] = states[place, : len(self.rows[index])].clone()
                advance(len(batch))
        return hidden


def streamed(folder: Path) -> Any:
    """The model in float32, each of its decoder layers without weights but while it runs.

    An architecture whose tensors go by other names in the file than in the model is loaded whole.
    """
    stored, source = _Stored(folder), ModelFolder(folder)
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(source.read_config(), dtype=torch.float32)
    if model.config.get_text_config().tie_word_embeddings and "lm_head.weight" not in stored.files:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    if {name for name, _ in model.named_parameters()} != stored.files.keys():
        return source.load_model(dtype=torch.float32)
    layers = model.get_decoder().layers
    prefixes = {
        f"{name}.": layer
        for name, layer in model.named_modules()
        if any(layer is one for one in layers)
    }
    for name, parameter in list(model.named_parameters()):
        if not name.startswith(tuple(prefixes)):
            _fill(model, name, stored(name), shared=parameter)
    for prefix, layer in prefixes.items():
        names = [name for name in stored.files if name.startswith(prefix)]
        layer.register_forward_pre_hook(_fetch(model, names, stored))
        layer.register_forward_hook(_drop(model, names))
    return model.eval()


def _fetch(model: Any, names: list[str], stored: _Stored) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        for name in names:
            _fill(model, name, stored(name))

    return hook


def _drop(model: Any, names: list[str]) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        for name in names:
            _fill(model, name, torch.empty(0))

    return hook


def _fill(model: Any, name: str, tensor: Tensor, *, shared: nn.Parameter | None = None) -> None:
    """Put the tensor where the model has a parameter of this name, and wherever else `shared`
    is."""
    parameter = nn.Parameter(tensor, requires_grad=False)
    for module in (
        model.modules() if shared is not None else [model.get_submodule(name.rpartition(".")[0])]
    ):
        for key, found in list(module._parameters.items()):
            if found is shared if shared is not None else key == name.rpartition(".")[2]:
                module._parameters[key] = parameter


class _Stored:
    """The tensors of a folder's safetensors files by name, as float32."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = {}
        for path in weight_files(folder):
            with weights_in(path) as file:
                self.files |= dict.fromkeys(file.keys(), path)

    def __call__(self, name: str) -> Tensor:
        with weights_in(
            self.files[name]
        ) as file:  # anew each time: an open file keeps all that was read of it in memory
            return file.get_tensor(name).float()
