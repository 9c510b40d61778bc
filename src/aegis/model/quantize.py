"""Quantised bases by bitsandbytes, 4-bit NF4 and LLM.int8(), and the plain layers that hold what
their codes stand for.

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
NF4_BLOCK = 64  # weights that share one scale; the scales themselves are 8-bit codes, 256 of them sharing one float
_SCALES = 256
_CLASSES = ("Linear4bit", "Linear8bitLt")


def require_package(quantization: Quantization) -> None:
    """The package that quantises is installed.

    Raises:
        MissingPackageError: if it is not.
    """
    if quantization == "none":
        return
    if importlib.util.find_spec(PACKAGE) is None:
        raise MissingPackageError(
            f"model.quantization: {quantization} needs the package {PACKAGE}; run: pip install '{PACKAGE}>=0.46.1', "
            "or set model.quantization: none"
        )
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(
        logging.ERROR
    )  # a line for every int8 product


def require_plain(config: Any, *, where: str) -> None:
    """The base's own weights are not quantised already.

    Raises:
        ModelError: if they are.
    """
    if found := getattr(config, "quantization_config", None):
        method = (
            found.get("quant_method")
            if isinstance(found, dict)
            else getattr(found, "quant_method", None)
        )
        raise ModelError(
            f"{where}: model.quantization must be none for a base that is quantised already, found quant_method "
            f"{getattr(method, 'value', method)!r}; give the base with its original weights"
        )


def quantization_config(quantization: Quantization, *, dtype: torch.dtype) -> Any:
    """What transformers needs to know: NF4 with quantised scales, products in `dtype`; or
    LLM.int8().

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
    """True for bitsandbytes' own linear layers; PEFT's wrappers around them carry the same names
    but are none."""
    return isinstance(layer, nn.Linear) and type(layer).__name__ in _CLASSES


@torch.no_grad()
def set_compute_dtype(model: Any, dtype: torch.dtype) -> None:
    """The codes are made from float32, so that they are a function of the base alone; the rest goes
    to `dtype` only now."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for layer in model.modules():
        if type(layer).__name__ == "Linear4bit" and is_quantised(layer):
            layer.weight.quant_state.dtype = dtype
            # On CPUs with AVX512-BF16 an evaluation pass would repack the weights for good: scales rounded to bfloat16, no
            # gradient for what comes below, and shapes that must be multiples of 32 (bitsandbytes 0.50).
            layer.support_avx512bf16_for_cpu = False
    model.config.dtype = dtype


@torch.no_grad()
def dequantised(model: Any, *, device: torch.device | None = None) -> Any:
    """Replace every quantised layer in place by a plain one in float32 with the weights that the
    codes stand for.

    Args:
        model: a transformers model that `load_model` quantised, nothing attached to it.
        device: where the model goes; where it is by default. float32 takes up to eight times the
            room.

    Returns:
        The same model: ordinary to transformers, all its parameters in float32.
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
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(mark, None)
    return model.to(device=device, dtype=torch.float32)


def dequantised_weight(layer: Any) -> Tensor:
    """(out, in) float32: what the codes of a quantised layer stand for."""
    from bitsandbytes import functional

    if type(layer).__name__ == "Linear4bit":
        state = copy.copy(layer.weight.quant_state)
        state.dtype = torch.float32
        return functional.dequantize_4bit(layer.weight.data, state)
    scales = (
        layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
    )  # they move at the first forward pass
    return functional.int8_vectorwise_dequant(layer.weight.data, scales)


def count(parameter: nn.Parameter) -> int:
    """How many weights a parameter stands for: 4-bit codes are packed by two, an offloaded one is
    empty while it waits."""
    if (number := getattr(parameter, STANDS_FOR, None)) is not None:
        return number
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def quantised_bytes(
    out_features: int, in_features: int, quantization: Literal["nf4", "int8"]
) -> int:
    """Bytes of one layer's codes and scales."""
    weights = out_features * in_features
    if quantization == "int8":
        return weights + 4 * out_features
    blocks = math.ceil(weights / NF4_BLOCK)
    return math.ceil(weights / 2) + blocks + 4 * math.ceil(blocks / _SCALES)
