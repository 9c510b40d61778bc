"""Gradient checkpointing: a layer keeps only its input and runs again in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from aegis.model.adapted import Adapted


def checkpoint_layers(adapted: Adapted) -> None:
    """Have every decoder layer recompute its activations; gradients stay the same.

    transformers' own switch works in training mode only, and the reward model and PPO train in
    evaluation mode; nor does it know that a model has roles.
    """
    for layer in adapted.base.get_decoder().layers:
        layer.forward = _checkpointed(adapted, layer.forward)


def _checkpointed(adapted: Adapted, forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        role = adapted.role

        def replay(*again: Any) -> Any:
            if adapted.role == role:
                return forward(*again, **options)
            # The backward pass may come when the model acts in another role.
            with adapted.acting_as(role):
                return forward(*again, **options)

        # Not reentrant: that one gives no gradient where no input needs one, as under the lowest
        # adapted layer.
        return checkpoint(replay, *inputs, use_reentrant=False)

    return run
