"""The adapted model on the meta device.

Two things are put in place of what a real run has: a fused attention (transformers' own choice on a
GPU), and the layers that bitsandbytes quantises.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from aegis.config import LoraSettings, ModelSettings
from aegis.model.adapted import Adapted, attach
from aegis.model.base import meta_model
from aegis.model.grad_checkpoint import checkpoint_layers
from aegis.model.quantize import Quantization, quantised_bytes
from aegis.train.memory.rehearsal import META

_FUSED = "aegis_rehearsal"


@dataclass(frozen=True)
class Roles:
    """What a training needs beside the policy: but for SFT a reference, and where there is one the
    reward model's LoRA."""

    training: str
    reward: LoraSettings | None = None


def meta_adapted(
    config: Any,
    settings: ModelSettings,
    roles: Roles,
    *,
    spec: str,
    dtype: torch.dtype,
    fused: bool,
) -> Adapted:
    """Build the adapted model without content.

    Args:
        config: the base's own; left as it is.
        fused: attention as on a GPU, where scores are never held; else transformers' plain one.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type", "default") != "default":
        # Some kinds look at the numbers in the positions; the shapes are the same for all.
        kept = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        text.rope_parameters = {"rope_type": "default", **kept}
    if fused:
        AttentionInterface.register(_FUSED, _fused_attention)
    model = meta_model(config, spec=spec, attention=_FUSED if fused else "eager").to(dtype)
    with META:
        if settings.quantization != "none":
            _replace_quantised(model, settings.quantization)
        adapted = prepared(attach(model, settings), roles)
    if settings.gradient_checkpointing:
        checkpoint_layers(adapted)
    return adapted


def prepared(adapted: Adapted, roles: Roles) -> Adapted:
    """Add what a training needs beside the policy, and do to embeddings what tags do."""
    if roles.training != "sft":
        adapted.add_reference()
    if roles.reward is not None:
        adapted.add_reward(roles.reward)
    # The tags' rows are added to what leaves the embedding; where they train, it needs a gradient.
    hook = _needing_gradient if roles.training == "sft" else _copied
    adapted.base.get_input_embeddings().register_forward_hook(hook)
    return adapted


def _needing_gradient(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return (output + 0).requires_grad_(torch.is_grad_enabled())


def _copied(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output + 0


def frozen_bytes(adapted: Adapted, settings: ModelSettings, dtype: torch.dtype) -> tuple[int, int]:
    """Return (all, in the decoder's layers) bytes of the base's own weights."""
    layers = adapted.base.get_decoder().layers
    inside = {id(parameter) for parameter in layers.parameters()}
    lora = {id(value) for name, value in adapted.peft.named_parameters() if ".lora_" in name}
    whole = among = 0
    for module in adapted.base.modules():
        stand_in = isinstance(module, _QuantisedLinear)
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in lora:
                continue
            size = parameter.numel() * dtype.itemsize
            if stand_in and key == "weight" and settings.quantization != "none":
                rows, columns = parameter.shape
                size = quantised_bytes(rows, columns, settings.quantization)
            among += size * (id(parameter) in inside)
            whole += size
    if is_tied(adapted):
        whole -= adapted.base.get_input_embeddings().weight.numel() * dtype.itemsize
    return whole, among


def is_tied(adapted: Adapted) -> bool:
    """Return whether lm_head and the embedding share their weight."""
    base = adapted.base
    return base.get_output_embeddings().weight is base.get_input_embeddings().weight


class _FusedAttention(torch.autograd.Function):
    """Keep queries, keys, values, the output and one number a row of scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        row_sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, row_sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _fused_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    output: Any = _FusedAttention.apply(query, key, value)
    return output.transpose(1, 2).contiguous(), None


class _QuantisedLinear(nn.Linear):
    """A weight that is there in `dtype` only while it is multiplied with."""

    keeps_input = False

    def forward(self, input: Tensor) -> Tensor:
        product: Any = _Dequantised.apply(input, self.weight, self.keeps_input)
        return product


class _Dequantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, keeps_input: bool) -> Tensor:
        ctx.save_for_backward(weight, *([inputs] if keeps_input else []))
        return (inputs.to(weight.dtype) @ torch.empty_like(weight).mT).to(inputs.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight = ctx.saved_tensors[0]
        return gradients[0].to(weight.dtype) @ torch.empty_like(weight), None, None


def _replace_quantised(model: Any, quantization: Quantization) -> None:
    """Replace every layer that bitsandbytes would quantise: all linear ones but lm_head."""
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and layer is not model.get_output_embeddings():
            shape = layer.in_features, layer.out_features
            other = _QuantisedLinear(*shape, bias=layer.bias is not None, dtype=layer.weight.dtype)
            other.keeps_input = quantization == "int8"
            model.set_submodule(name, other)
