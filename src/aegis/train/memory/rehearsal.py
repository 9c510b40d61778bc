"""The steps of a training, run on tensors that have shapes and no content, with every allocation
counted.

What a step allocates follows from the code that runs: the model's own layers, PEFT's, gates,
checkpointing. So that code is run, on torch's meta device, instead of a formula for each
architecture. Two things are put in its place: a fused attention (transformers' own choice on a
GPU), and the layers that bitsandbytes quantises.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface

from aegis.config import ModelSettings
from aegis.model.adapted import Adapted, attach
from aegis.model.base import meta_model
from aegis.model.chunks import in_chunks
from aegis.model.grad_checkpoint import checkpoint_layers
from aegis.model.quantize import Quantization, quantised_bytes
from aegis.model.trunk import Trunk
from aegis.so8.losses import second_difference

META = torch.device("meta")
_FUSED = "aegis_rehearsal"


class Allocations(TorchDispatchMode):
    """While entered, counts the bytes of every tensor that comes into being and goes.

    Args:
        known: a module whose parameters and buffers were there before.
    """

    def __init__(self, known: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in (*known.parameters(), *known.buffers()):
            self._sizes[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.note, found)
        return found

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += self._sizes[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key).atexit = False

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


@dataclass(frozen=True)
class Shapes:
    """What a step works on: `rows` of `length` tokens each; of each row `steps` tokens are scored
    over the vocabulary."""

    rows: int
    length: int
    steps: int = 0

    def ids(self) -> Tensor:
        return torch.zeros(self.rows, self.length, dtype=torch.long, device=META)

    def ones(self) -> Tensor:
        return torch.ones(self.rows, self.length, dtype=torch.long, device=META)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """(rows, 1, length, length): as the model's own code would make it from `ones`."""
        return torch.zeros(self.rows, 1, self.length, self.length, dtype=dtype, device=META)


def actors(
    config: Any,
    settings: ModelSettings,
    *,
    spec: str,
    dtype: torch.dtype,
    fused: bool,
    reward: Any = None,
    roles: bool = False,
) -> Adapted:
    """The adapted model on the meta device, with what a step needs.

    Args:
        config: the base's own; left as it is.
        fused: attention as on a GPU, where scores are never held; else transformers' plain one.
        reward: LoRA settings of the reward model, if there is one.
        roles: with a reference.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if (
        isinstance(rope := getattr(text, "rope_parameters", None), dict)
        and rope.get("rope_type", "default") != "default"
    ):
        # Some kinds look at the numbers in the positions; the shapes are the same for all.
        kept = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        text.rope_parameters = {"rope_type": "default", **kept}
    if fused:
        AttentionInterface.register(_FUSED, _fused_attention)
    model = meta_model(config, spec=spec, attention=_FUSED if fused else "eager").to(dtype)
    with META:
        if settings.quantization != "none":
            _stand_in(model, settings.quantization)
        adapted = attach(model, settings)
        if roles:
            adapted.add_reference()
        if reward is not None:
            adapted.add_reward(reward)
    # The tags' rows make what leaves the embedding need a gradient; whether a batch has any depends on its numbers.
    adapted.base.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: output + 0
    )
    if settings.gradient_checkpointing:
        checkpoint_layers(adapted)
    return adapted


def supervised(
    adapted: Adapted,
    shapes: Shapes,
    *,
    pet: bool,
    bfloat16: bool,
    tagged: bool = True,
    chunked: bool = False,
) -> int:
    """Peak bytes of SFT's forward and backward pass, gradients included.

    Args:
        chunked: vocabulary logits by the chunk, as in DPO.
    """

    def loss() -> Tensor:
        hidden = adapted.hidden(shapes.ids(), shapes.mask(_dtype(adapted)))
        decision = adapted.decide(hidden, shapes.ones())
        total = functional.cross_entropy(decision, shapes.ids()[:, 0], reduction="sum")

        def score(before: Tensor, tokens: Tensor) -> tuple[Tensor]:
            return (
                functional.cross_entropy(adapted.logits(before).float(), tokens, reduction="none"),
            )

        rows = hidden[:, :-1].flatten(0, 1), shapes.ids()[:, 1:].flatten()
        (losses,) = in_chunks(score, *rows) if chunked else score(*rows)
        total = total + losses.sum()
        return total + second_difference(hidden) if pet else total

    with _tagged(adapted, tagged):
        return _trained(adapted, loss, bfloat16=bfloat16)


def preferred(adapted: Adapted, shapes: Shapes) -> int:
    """Peak bytes of the reward model's forward and backward pass, from the trunk up."""
    layer, width = adapted.reward_layer(), adapted.head.features

    def loss() -> Tensor:
        trunk = Trunk(
            layer,
            torch.zeros(shapes.rows, shapes.length, width, dtype=_dtype(adapted), device=META),
        )
        with adapted.acting_as("reward"):
            hidden = adapted.hidden(shapes.ids(), shapes.mask(_dtype(adapted)), trunk=trunk)
        return hidden[:, -1].float().sum()

    return _trained(adapted, loss, bfloat16=False)


def scored(adapted: Adapted, shapes: Shapes) -> int:
    """Peak bytes of scoring a whole batch without gradients: trunk, hidden states, and logits by
    the chunk."""
    with Allocations(adapted) as seen, torch.no_grad():
        trunk = adapted.trunk(
            shapes.ids(), shapes.mask(_dtype(adapted)), layer=adapted.lowest_layer()
        )
        hidden = adapted.hidden(shapes.ids(), shapes.mask(_dtype(adapted)), trunk=trunk)
        if shapes.steps:
            _logprobs(adapted, hidden.flatten(0, 1))
    return seen.peak


def optimised(adapted: Adapted, shapes: Shapes, *, minibatches: int) -> int:
    """Peak bytes of one PPO step on a share of the batch, with the whole batch's trunk kept."""
    rows, layer, width = shapes.rows // minibatches, adapted.lowest_layer(), adapted.head.features
    part = Shapes(rows, shapes.length, shapes.steps)
    kept = shapes.rows * shapes.length * width * _dtype(adapted).itemsize

    def loss() -> Tensor:
        trunk = Trunk(
            layer, torch.zeros(rows, shapes.length, width, dtype=_dtype(adapted), device=META)
        )
        hidden = adapted.hidden(part.ids(), part.mask(_dtype(adapted)), trunk=trunk)
        logprobs = _logprobs(adapted, hidden[:, : shapes.steps].flatten(0, 1))
        return logprobs.sum() + adapted.decide(hidden, part.ones()).sum()

    return kept + _trained(adapted, loss, bfloat16=False)


def frozen_bytes(adapted: Adapted, settings: ModelSettings, dtype: torch.dtype) -> tuple[int, int]:
    """(all, in the decoder's layers) bytes of the base's own weights."""
    layers = adapted.base.get_decoder().layers
    inside = {id(parameter) for parameter in layers.parameters()}
    lora = {
        id(parameter) for name, parameter in adapted.peft.named_parameters() if ".lora_" in name
    }
    whole = among = 0
    for module in adapted.base.modules():
        stand_in = isinstance(module, _StandIn)
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in lora:
                continue
            size = parameter.numel() * dtype.itemsize
            if stand_in and key == "weight" and settings.quantization != "none":
                rows, columns = parameter.shape
                size = quantised_bytes(rows, columns, settings.quantization)
            among += size * (id(parameter) in inside)
            whole += size
    if adapted.base.get_output_embeddings().weight is adapted.base.get_input_embeddings().weight:
        whole -= adapted.base.get_input_embeddings().weight.numel() * dtype.itemsize
    return whole, among


def _trained(adapted: Adapted, loss: Callable[[], Tensor], *, bfloat16: bool) -> int:
    """Two steps: in the second the gradients of the first are there until its own backward pass
    begins."""
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    with Allocations(adapted) as seen, _autocast() if bfloat16 else contextlib.nullcontext():
        for _ in range(2):
            total = loss()
            for parameter in parameters:
                parameter.grad = None
            total.backward()
            del total
    for parameter in parameters:
        parameter.grad = None
    return seen.peak


def _logprobs(adapted: Adapted, hidden: Tensor) -> Tensor:
    """As `chosen_logprobs`: one float32 copy, restricted in place, and what its sum of exponentials
    needs."""

    def score(before: Tensor) -> tuple[Tensor]:
        logits = adapted.logits(before).to(torch.float32, copy=True)
        allowed = torch.ones(logits.shape[1], dtype=torch.bool, device=META)
        closing = torch.zeros(len(logits), 1, dtype=torch.long, device=META)
        logits.masked_fill_(~allowed, -torch.inf)
        logits.div_(2.0)
        return (logits.gather(1, closing).squeeze(1) - logits.logsumexp(-1),)

    return in_chunks(score, hidden)[0]


@contextlib.contextmanager
def _tagged(adapted: Adapted, tagged: bool) -> Iterator[None]:
    if not tagged:
        yield
        return
    hook = adapted.base.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: output.requires_grad_()
    )
    try:
        yield
    finally:
        hook.remove()


def _dtype(adapted: Adapted) -> torch.dtype:
    return adapted.base.get_input_embeddings().weight.dtype


@contextlib.contextmanager
def _autocast() -> Iterator[None]:
    """Products in bfloat16. torch's own autocast passes meta tensors by, and a function mode is off
    in a backward pass."""

    def cast(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*tensors: Tensor | None, **options: Any) -> Tensor:
            return product(
                *(t.to(torch.bfloat16) if t is not None else None for t in tensors), **options
            )

        return run

    places: list[tuple[Any, str]] = [(functional, "linear"), (torch, "matmul"), (torch, "bmm")]
    plain = [getattr(owner, name) for owner, name in places]
    for (owner, name), product in zip(places, plain, strict=True):
        setattr(owner, name, cast(product))
    try:
        yield
    finally:
        for (owner, name), product in zip(places, plain, strict=True):
            setattr(owner, name, product)


class _FusedAttention(torch.autograd.Function):
    """Keeps queries, keys, values, the output and one number a row of scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = torch.empty_like(query)
        ctx.save_for_backward(
            query, key, value, found, query.new_empty(query.shape[:3], dtype=torch.float32)
        )
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _fused_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    return _FusedAttention.apply(query, key, value).transpose(1, 2).contiguous(), None  # pyright: ignore


class _StandIn(nn.Linear):
    """Where bitsandbytes' layer will be: a weight that is there in `dtype` only while it is
    multiplied with."""

    keeps_input = False

    def forward(self, input: Tensor) -> Tensor:
        return _Dequantised.apply(input, self.weight, self.keeps_input)  # pyright: ignore


class _Dequantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, keeps_input: bool) -> Tensor:
        ctx.save_for_backward(weight, *([inputs] if keeps_input else []))
        return (inputs.to(weight.dtype) @ torch.empty_like(weight).mT).to(inputs.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight = ctx.saved_tensors[0]
        return gradients[0].to(weight.dtype) @ torch.empty_like(weight), None, None


def _stand_in(model: Any, quantization: Quantization) -> None:
    """In place of every layer that bitsandbytes would quantise: all linear ones but lm_head."""
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and layer is not model.get_output_embeddings():
            other = _StandIn(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                dtype=layer.weight.dtype,
            )
            other.keeps_input = quantization == "int8"
            model.set_submodule(name, other)
