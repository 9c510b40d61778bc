"""Run only the upper or the lower part of a decoder: what roles share is computed once."""

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

    entries = [*decoder.layers, decoder.norm]
    with contextlib.ExitStack() as stack:
        if trunk:
            stack.enter_context(_skipped(decoder.layers[: trunk.layer]))
            stack.callback(entries[trunk.layer].register_forward_pre_hook(at_start).remove)
        if catch is not None:
            stack.callback(entries[catch].register_forward_pre_hook(at_catch).remove)
        hidden = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden, None if catch is None else Trunk(catch, caught[0])


def below(decoder: Any, ids: Tensor, mask: Tensor, *, layer: int) -> Trunk:
    """Return what enters decoder layer `layer`; the layers from there on are not run."""
    with _skipped(decoder.layers[layer:]):
        trunk = last_hidden(decoder, ids, mask, catch=layer)[1]
    assert trunk is not None
    return trunk


@contextlib.contextmanager
def _skipped(layers: Any) -> Iterator[None]:
    """Have layers hand on their input; they stay, for decoders choose masks by a layer's index."""
    # A checkpointed or offloaded layer has a forward of its own already.
    own = [(layer, vars(layer).get("forward")) for layer in layers]
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
