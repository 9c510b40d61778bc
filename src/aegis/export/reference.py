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

from aegis.export.gguf_checks import open_weights, weight_files
from aegis.model.base import ModelFolder
from aegis.model.device import release_memory
from aegis.model.lm_head import vocabulary_logits
from aegis.model.prompt import by_length, pad
from aegis.runs.reporter import bar

_BATCH_TOKENS = 1024


class Reference:
    """Logits of the model in a Hugging Face folder, row by row.

    Args:
        rows: token ids of each text.

    Raises:
        ModelError: if the folder holds no model.
    """

    def __init__(self, folder: Path, rows: Sequence[list[int]]) -> None:
        self.rows = [list(row) for row in rows]
        self._stored = _StoredTensors(folder)
        self._model = streamed(folder)
        self._hidden = self._read()
        table = self._model.get_input_embeddings().weight
        head = self._model.get_output_embeddings().weight
        name = next(name for name, parameter in self._model.named_parameters() if parameter is head)
        # None: lm_head stays in memory, as all of a model that was loaded whole.
        self._head = name if name in self._stored.files else None
        for unneeded in {table, head} if self._head else {table} - {head}:
            _replace(self._model, unneeded, torch.empty(0))
        release_memory()

    @contextmanager
    def head(self) -> Iterator[None]:
        """Hold lm_head in memory within."""
        if not self._head:
            yield
            return
        _replace(self._model, self._head_weight(), self._stored(self._head))
        try:
            yield
        finally:
            _replace(self._model, self._head_weight(), torch.empty(0))

    def logits(self, index: int, part: slice) -> Tensor:
        """Return (tokens, vocabulary) float32 for a part of the row."""
        with torch.inference_mode():
            return vocabulary_logits(self._model, self._hidden[index][part]).float()

    def _head_weight(self) -> nn.Parameter:
        return self._model.get_output_embeddings().weight

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
    """Return the model in float32, each of its decoder layers without weights but while it runs.

    An architecture whose tensors go by other names in the file than in the model is loaded whole.
    """
    stored, source = _StoredTensors(folder), ModelFolder(folder)
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(source.read_config(), dtype=torch.float32)
    if model.config.get_text_config().tie_word_embeddings and "lm_head.weight" not in stored.files:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    parameters = dict(model.named_parameters())
    if parameters.keys() != stored.files.keys():
        return source.load_model(dtype=torch.float32)
    streamed_names = set[str]()
    for layer in model.get_decoder().layers:
        prefix = next(f"{name}." for name, module in model.named_modules() if module is layer)
        names = [name for name in stored.files if name.startswith(prefix)]
        layer.register_forward_pre_hook(_fill(model, names, stored))
        layer.register_forward_hook(_fill(model, names, lambda _: torch.empty(0)))
        streamed_names.update(names)
    for name, parameter in parameters.items():
        if name not in streamed_names:
            _replace(model, parameter, stored(name))
    return model.eval()


def _fill(model: Any, names: list[str], tensor_of: Callable[[str], Tensor]) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        for name in names:
            owner, key = name.rsplit(".", 1)
            parameter = nn.Parameter(tensor_of(name), requires_grad=False)
            model.get_submodule(owner)._parameters[key] = parameter

    return hook


def _replace(model: Any, old: nn.Parameter, tensor: Tensor) -> None:
    """Put the tensor wherever the model has the old parameter."""
    parameter = nn.Parameter(tensor, requires_grad=False)
    for module in model.modules():
        for key, present in list(module._parameters.items()):
            if present is old:
                module._parameters[key] = parameter


class _StoredTensors:
    """The tensors of a folder's safetensors files by name, as float32."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = {}
        for path in weight_files(folder):
            with open_weights(path) as file:
                self.files |= dict.fromkeys(file.keys(), path)

    def __call__(self, name: str) -> Tensor:
        # Opened anew each time: an open file keeps all that was read of it in memory.
        with open_weights(self.files[name]) as file:
            return file.get_tensor(name).float()
