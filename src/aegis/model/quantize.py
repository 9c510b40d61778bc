"""Bases quantised by bitsandbytes (NF4, LLM.int8()), and the plain layers their codes stand for.

Only the linear layers inside the decoder are quantised. The embedding and lm_head stay as they are,
for the tags' rows are written into them.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aegis.errors import MissingPackageError, ModelError

Quantization = Literal["none", "nf4", "int8"]
PACKAGE = "bitsandbytes"
STANDS_FOR = "stands_for"
# 64 weights share one scale; the scales are 8-bit codes, of which 256 share one float.
NF4_BLOCK, _SCALES = 64, 256
_CLASSES = ("Linear4bit", "Linear8bitLt")


def require_package(quantization: Quantization) -> None:
    """Check that the package that quantises is installed.

    Raises:
        MissingPackageError: if it is not.
    """
    if quantization == "none":
        return
    if importlib.util.find_spec(PACKAGE) is None:
        raise MissingPackageError(
            f"model.quantization: {quantization} needs the package {PACKAGE}; "
            f"run: pip install '{PACKAGE}>=0.46.1', or set model.quantization: none"
        )
    # It would log a line for every int8 product.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def require_plain(config: Any, *, where: str) -> None:
    """Check that the base's own weights are not quantised already.

    Raises:
        ModelError: if they are: LoRA and gates could not be folded into their codes.
    """
    parts, names = (config, config.get_text_config()), ("quantization_config", "compression_config")
    marks = (getattr(part, name, None) for part in parts for name in names)
    if own := next(filter(None, marks), None):
        method = (own if isinstance(own, dict) else vars(own)).get("quant_method")
        raise ModelError(
            f"{where}: must hold its original weights, for quantised ones cannot be folded; "
            f"is quantised already, found quant_method {getattr(method, 'value', method)!r}; "
            "give the base before quantisation, and set model.quantization: nf4 to save memory"
        )


def quantization_config(quantization: Quantization, *, dtype: torch.dtype) -> Any:
    """Return transformers' config: NF4 with quantised scales, products in `dtype`; or LLM.int8().

    Raises:
        MissingPackageError: if bitsandbytes is not installed.

    Source:
        Dettmers et al., QLoRA, 2023 (NF4, double quantisation); Dettmers et al., LLM.int8(), 2022.
    """
    from transformers import BitsAndBytesConfig

    require_package(quantization)
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def is_quantised(layer: nn.Module) -> bool:
    """Return whether the layer is bitsandbytes' own, not PEFT's wrapper of the same name."""
    return isinstance(layer, nn.Linear) and type(layer).__name__ in _CLASSES


@torch.no_grad()
def set_compute_dtype(model: Any, dtype: torch.dtype) -> None:
    """Move what is not in codes to `dtype`; codes are made from float32, of the base alone."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for layer in model.modules():
        if type(layer).__name__ == "Linear4bit" and is_quantised(layer):
            layer.weight.quant_state.dtype = dtype
            # On CPUs with AVX512-BF16 an evaluation pass would repack the weights for good: scales
            # rounded to bfloat16, no gradient for what comes below, and shapes that must be
            # multiples of 32 (bitsandbytes 0.50).
            layer.support_avx512bf16_for_cpu = False
    model.config.dtype = dtype


@torch.no_grad()
def dequantised(model: Any, *, device: torch.device | None = None) -> Any:
    """Replace every quantised layer in place by a plain float32 one; return the same model.

    Args:
        model: a transformers model that `load_model` quantised, nothing attached to it.
        device: where the model goes, needing up to eight times the room; where it is by default.
    """
    for name, layer in list(model.named_modules()):
        if not is_quantised(layer):
            continue
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(dequantised_weight(layer).to(device), requires_grad=False)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.float().to(device), requires_grad=False)
        model.set_submodule(name, plain.train(layer.training))
    model.hf_quantizer.remove_quantization_config(model)
    model.config._is_quantized = False
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(flag, None)
    return model.to(device=device, dtype=torch.float32)


def dequantised_weight(layer: Any) -> Tensor:
    """Return the (out, in) float32 weight that a quantised layer's codes stand for."""
    from bitsandbytes import functional

    if type(layer).__name__ == "Linear4bit":
        state = copy.copy(layer.weight.quant_state)
        state.dtype = torch.float32
        return functional.dequantize_4bit(layer.weight.data, state)
    moved = layer.state.SCB  # where the scales are after the first forward pass
    scales = moved if moved is not None else layer.weight.SCB
    return functional.int8_vectorwise_dequant(layer.weight.data, scales)


def count(parameter: nn.Parameter) -> int:
    """Return how many weights a parameter stands for, packed in codes or offloaded or not."""
    if (number := getattr(parameter, STANDS_FOR, None)) is not None:
        return number
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def quantised_bytes(
    out_features: int, in_features: int, quantization: Literal["nf4", "int8"]
) -> int:
    """Return the bytes of one layer's codes and scales."""
    weights = out_features * in_features
    if quantization == "int8":
        return weights + 4 * out_features
    blocks = math.ceil(weights / NF4_BLOCK)
    return math.ceil(weights / 2) + blocks + 4 * math.ceil(blocks / _SCALES)
