"""Run only the upper or only the lower part of a decoder: what several roles have in common is
computed once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Trunk:
    """(batch, time, d) hidden states as they enter decoder layer `layer`."""

    layer: int
    states: Tensor


def last_hidden(
    decoder: Any, ids: Tensor, mask: Tensor, *, trunk: Trunk | None = None, catch: int | None = None
) -> tuple[Tensor, Trunk | None]:
    """(batch, time) ids and mask → (batch, time, d) last hidden states after the final norm.

    Args:
        trunk: start from these states; the layers below are not run.
        catch: also return what enters this layer, as a trunk for another role.
    """
    caught: list[Tensor] = []

    def at_catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0])

    def at_start(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert trunk is not None
        return (trunk.states, *inputs[1:])

    layers = decoder.layers
    with contextlib.ExitStack() as stack:
        if trunk:
            stack.enter_context(_skipped(layers[: trunk.layer]))
            if trunk.layer == len(layers):
                stack.callback(decoder.norm.register_forward_pre_hook(at_start).remove)
            else:
                stack.callback(layers[trunk.layer].register_forward_pre_hook(at_start).remove)
        if catch is not None:
            place = decoder.norm if catch == len(layers) else layers[catch]
            stack.callback(place.register_forward_pre_hook(at_catch).remove)
        found = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return found, None if catch is None else Trunk(catch, caught[0])


def below(decoder: Any, ids: Tensor, mask: Tensor, *, layer: int) -> Trunk:
    """What enters decoder layer `layer`; the layers from there on are not run."""
    with _skipped(decoder.layers[layer:]):
        trunk = last_hidden(decoder, ids, mask, catch=layer)[1]
    assert trunk is not None
    return trunk


@contextlib.contextmanager
def _skipped(layers: Any) -> Iterator[None]:
    """Layers that hand on what they get; they stay in their places, for decoders choose masks by a
    layer's index."""
    own = [
        (layer, vars(layer).get("forward")) for layer in layers
    ]  # a checkpointed or offloaded layer has one already
    for layer in layers:
        layer.forward = _hand_on
    try:
        yield
    finally:
        for layer, forward in own:
            del layer.forward
            if forward:
                layer.forward = forward


def _hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states
