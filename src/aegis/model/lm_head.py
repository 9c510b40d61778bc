"""From the last hidden state to logits, and which lm_head does not outlive a conversion."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

# Their GGUF converters drop lm_head.weight, so that a gate folded into it would be lost in silence.
LM_HEAD_DROPPED = frozenset({"gemma", "gemma2"})


def vocabulary_logits(model: Any, hidden: Tensor) -> Tensor:
    """(..., d) last hidden states → (..., vocabulary) logits, as the model's own `forward` has it.

    It runs with the hidden states in the decoder's place, on the model's own modules and weights.
    """
    rows = hidden.reshape(1, -1, hidden.shape[-1])
    path = next(name for name, module in model.named_modules() if module is model.get_decoder())
    given = nn.Module()
    given.forward = lambda *_, **__: _DecoderOutput(last_hidden_state=rows)
    logits = _with_module(model, path.split("."), given)(inputs_embeds=rows).logits
    return logits.reshape(*hidden.shape[:-1], logits.shape[-1])


def logits_of(model: Any, hidden: Tensor, ids: Sequence[int], *, added: Tensor) -> Tensor:
    """(n, d) last hidden states → (n, tokens) float32 logits of some tokens, scaled and capped as
    the model does it, behind lm_head's gate. In bfloat16 logits would be steps of a tenth.

    Args:
        added: (tokens, d) what is added to their rows of lm_head.
    """
    head, chosen = model.get_output_embeddings(), list(ids)
    rows, bias = head.weight[chosen].float() + added, getattr(head, "bias", None)
    bias = 0.0 if bias is None else bias[chosen].float()
    few = nn.Module()
    # Not as a matrix product, which autocast would round.
    few.forward = lambda states: (states.unsqueeze(-2) * rows).sum(-1) + bias
    few._forward_pre_hooks = head._forward_pre_hooks
    path = next(name for name, module in model.named_modules() if module is head)
    return vocabulary_logits(_with_module(model, path.split("."), few), hidden.float())


def behind_gate(model: Any, hidden: Tensor) -> Tensor:
    """Return what lm_head's weight reads of last hidden states: a gate may turn them."""
    head = model.get_output_embeddings()
    for hook in head._forward_pre_hooks.values():
        turned = hook(head, (hidden,))
        hidden = hidden if turned is None else turned[0]
    return hidden


class _DecoderOutput(BaseModelOutputWithPast):
    def __getattr__(self, name: str) -> None:  # router logits and the like, handed on by many
        if name.startswith("__"):
            raise AttributeError(name)


def _with_module(module: nn.Module, path: list[str], part: nn.Module) -> nn.Module:
    """Return a shallow copy of the module with another part at the path; the rest is shared."""
    name, *rest = path
    child = _with_module(module.get_submodule(name), rest, part) if rest else part
    changed = copy.copy(module)
    vars(changed).pop("forward", None)  # put there by a trainer, it knows the module it is of
    changed._modules = {**module._modules, name: child}
    return changed


def lm_head_refusal(model_type: str) -> str | None:
    """Return why this architecture gets no gate on lm_head, or None."""
    if model_type not in LM_HEAD_DROPPED:
        return None
    return (
        f"a gate on the lm_head of {model_type} would be lost: "
        "its GGUF converter drops lm_head.weight"
    )
