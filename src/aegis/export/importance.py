"""Which input columns of each matrix matter most on a text: llama.cpp's importance matrix
("imatrix").

For y = W x the quantiser weighs the error of column j by the mean of x_j² over a text (llama.cpp,
tools/imatrix). Computed here from the model itself, layer by layer, as `reference.py` reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aegis.errors import DataError
from aegis.export.reference import streamed
from aegis.export.roundtrip import gguf_names
from aegis.runs.reporter import bar

_CHUNK, _BATCH = 512, 4
_MAX_CHUNKS = 128  # llama.cpp's own examples read about as much


@torch.inference_mode()
def importance(model: Path, text: Path, tokenizer: Any, *, gguf: Path) -> dict[str, Tensor]:
    """(columns,) float32 mean squares of what each linear layer reads, by the matrix's name in the
    GGUF file.

    Raises:
        DataError: if the text is not UTF-8, or too short to tell anything.
    """
    ids = _read(text, tokenizer)
    loaded, sums = streamed(model), dict[str, Tensor]()
    for name, layer in loaded.get_decoder().named_modules(prefix="model"):
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(_adding(sums, f"{name}.weight"))
    with bar("importance", len(ids)) as advance:
        for batch in ids.split(_BATCH):
            loaded.get_decoder()(input_ids=batch, use_cache=False)
            advance(len(batch))
    from gguf import GGUFReader

    _, there = gguf_names(GGUFReader(gguf))
    return {
        known: (total / ids.numel()).contiguous()
        for name, total in sums.items()
        if (known := there(name))
    }


def _read(text: Path, tokenizer: Any) -> Tensor:
    """(chunks, tokens) ids."""
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--imatrix {text}: cannot be read as UTF-8 text ({error}); give a plain text file"
        ) from error
    ids = tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
    chunks = min(len(ids) // _CHUNK, _MAX_CHUNKS)
    if not chunks:
        raise DataError(
            f"--imatrix {text}: has {len(ids)} tokens and {_CHUNK} are needed; give a longer text"
        )
    return torch.tensor(ids[: chunks * _CHUNK]).view(chunks, _CHUNK)


def _adding(sums: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        squares = inputs[0].float().square().flatten(0, -2).sum(0)
        sums[name] = sums.get(name, torch.zeros_like(squares)) + squares

    return hook
