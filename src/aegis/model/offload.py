"""Layers that find no room on the GPU wait in main memory and are copied over for each pass."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from aegis.errors import ConfigError
from aegis.model.quantize import STANDS_FOR, count

SHARE = 0.6  # of the GPU's free memory, for the base; the rest is for what trains and activations


def require_gpu() -> None:
    """Check that there is a GPU whose memory could be spared.

    Raises:
        ConfigError: if there is none.
    """
    if not torch.cuda.is_available():
        raise ConfigError("model.offload: true needs a GPU, found none; set model.offload: false")


def free_room() -> int:
    """Return the bytes on the GPU that the base's weights may take."""
    require_gpu()
    return int(SHARE * torch.cuda.mem_get_info()[0])


def waiting_layers(sizes: Sequence[int], *, room: int, around: int) -> int:
    """Return how many of the lowest layers have to wait in main memory.

    The lowest, for what lies below the adapters is run once.

    Args:
        sizes: bytes of each decoder layer's frozen weights.
        room: bytes on the GPU for all of the base.
        around: bytes of what is always there: embedding, norm, lm_head.

    Raises:
        ConfigError: if there is no room for a single layer.
    """
    if around + sum(sizes) <= room:
        return 0
    free = room - around - max(sizes)  # one layer's room is for the waiting one that runs
    if free < 0:
        raise ConfigError(
            f"model.offload: what surrounds the layers and one of them need "
            f"{(around + max(sizes)) / 2**30:.1f} GiB on the GPU, found room for "
            f"{room / 2**30:.1f}; set model.quantization: nf4 or take a smaller base"
        )
    waiting = len(sizes)
    for size in reversed(sizes):
        free -= size
        if free < 0:
            break
        waiting -= 1
    return waiting


def offload_layers(base: Any, *, device: torch.device, room: int) -> int:
    """Hold as many of the lowest layers in main memory as have to be; return their number.

    Call it when LoRA is attached, before the model is moved to `device`, and before
    `checkpoint_layers`, so that a layer's weights are fetched for its second pass too. A layer's
    frozen weights are on the device only while it runs; what trains in it stays there.

    Args:
        base: a transformers model, its linear layers plain or in 4 bits.
    """
    layers = base.get_decoder().layers
    sizes = [_frozen_bytes(layer) for layer in layers]
    waiting = waiting_layers(sizes, room=room, around=_frozen_bytes(base) - sum(sizes))
    for layer in layers[:waiting]:
        layer.forward = _fetching(layer, device)
    return waiting


def _fetching(layer: nn.Module, device: torch.device) -> Callable[..., Any]:
    """Return the layer's forward pass around which its weights come and go."""
    forward, cpu = layer.forward, torch.device("cpu")
    waiting = [(module, name, moved(weight, cpu)) for module, name, weight in _frozen(layer)]

    def release() -> None:
        for module, name, parameter in waiting:
            # PEFT puts new LoRA where it finds the weight, and in its dtype.
            empty = torch.empty(0, dtype=parameter.dtype, device=device)
            module._parameters[name] = nn.Parameter(empty, requires_grad=False)
            setattr(module._parameters[name], STANDS_FOR, count(parameter))

    @functools.wraps(forward)
    def run(*inputs: Any, **options: Any) -> Any:
        try:
            for module, name, parameter in waiting:
                # A new parameter each time: the graph of the pass before may still need its own.
                module._parameters[name] = moved(parameter, device)
            return forward(*inputs, **options)
        finally:
            release()

    release()
    return run


def moved(parameter: Any, device: torch.device) -> Any:
    """Return a frozen copy on the device, sharing its content if it is there already."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return nn.Parameter(parameter.data.to(device), requires_grad=False)
    other = copy.copy(parameter)
    other.data = parameter.data.to(device)
    other.quant_state = _moved_state(state, device)
    return other


def _moved_state(state: Any, device: torch.device) -> Any:
    """Copy it: bitsandbytes' own way changes the state in place."""
    other = copy.copy(state)
    for name in ("absmax", "code", "offset"):
        if getattr(state, name, None) is not None:
            setattr(other, name, getattr(state, name).to(device))
    if state.nested:
        other.state2 = _moved_state(state.state2, device)
    return other


def _frozen(module: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    return [
        (owner, key, parameter)
        for name, owner in module.named_modules()
        if "lora_" not in name
        for key, parameter in owner.named_parameters(recurse=False)
    ]


def _frozen_bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for _, _, weight in _frozen(module))
