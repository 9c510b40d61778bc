"""llama.cpp's importance matrix: which input columns of each matrix matter most on a text.

For y = W x the quantiser weighs the error of column j by the mean of x_j² over a text (llama.cpp,
tools/imatrix). Computed here from the model itself, layer by layer, as `reference.py` reads it.
cyllama cannot pass it on; llama-cpp-python can.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aegis.engine.llamacpp import FTYPES
from aegis.errors import AegisError, DataError, MissingPackageError
from aegis.export.gguf_checks import gguf_names
from aegis.export.reference import streamed
from aegis.inputs.text import read_text
from aegis.runs.reporter import bar

_CHUNK, _BATCH = 512, 4
_MAX_CHUNKS = 128  # llama.cpp's own examples read about as much


def require_package() -> None:
    """Check that llama-cpp-python is installed.

    Raises:
        MissingPackageError: if it is not.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingPackageError(
            "--imatrix needs llama-cpp-python; run: pip install 'aegis-so8t[imatrix]' (pip builds "
            "it with CMake and a C++ compiler), or leave the option out"
        )


@torch.inference_mode()
def importance(model: Path, text: Path, tokenizer: Any, *, gguf: Path) -> dict[str, Tensor]:
    """Return what each linear layer reads, by its matrix's name in the GGUF file.

    Returns:
        (columns,) float32 mean squares.

    Raises:
        DataError: if the text is not UTF-8, or too short to tell anything.
    """
    from gguf import GGUFReader

    ids = _read(text, tokenizer)
    decoder, sums = streamed(model).get_decoder(), dict[str, Tensor]()
    for name, layer in decoder.named_modules(prefix="model"):
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(_adding(sums, f"{name}.weight"))
    with bar("importance", len(ids)) as advance:
        for batch in ids.split(_BATCH):
            decoder(input_ids=batch, use_cache=False)
            advance(len(batch))
    _, name_in_file = gguf_names(GGUFReader(gguf))
    named = {name_in_file(name): total / ids.numel() for name, total in sums.items()}
    return {name: total.contiguous() for name, total in named.items() if name}


def quantise_by_importance(
    source: Path, target: Path, importance: Mapping[str, Tensor], *, kind: str, threads: int
) -> None:
    """Write `target`, of a type in `FTYPES`, from an f16 file by llama-cpp-python.

    Raises:
        AegisError: if llama.cpp gives up.
    """
    llama_cpp: Any = importlib.import_module("llama_cpp")
    tensors = {name.encode(): tensor.float().contiguous() for name, tensor in importance.items()}
    entry = llama_cpp.llama_model_imatrix_data
    pointer = ctypes.POINTER(ctypes.c_float)
    entries = [
        entry(name, ctypes.cast(tensor.data_ptr(), pointer), tensor.numel())
        for name, tensor in tensors.items()
    ]
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FTYPES[kind], threads
    # The array ends with an entry without a name.
    parameters.imatrix = (entry * (len(entries) + 1))(*entries)
    paths = str(source).encode(), str(target).encode()
    if llama_cpp.llama_model_quantize(*paths, ctypes.byref(parameters)):
        raise AegisError(f"{kind}: llama.cpp cannot quantise the model with an importance matrix")


def _read(text: Path, tokenizer: Any) -> Tensor:
    """Return (chunks, tokens) ids."""
    words = read_text(text, most=1 << 26, kind="plain text", error=DataError)
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
