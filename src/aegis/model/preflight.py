"""What a base must be to be adapted, folded and served; checked before any weight is loaded."""

from __future__ import annotations

from typing import Any

import torch

from aegis.config import LoraSettings, ModelSettings
from aegis.errors import ModelError
from aegis.model.adapted import attach, decoder_linears, lora_config
from aegis.model.base import Base, first_line, meta_model
from aegis.model.lm_head import vocabulary_logits
from aegis.model.offload import require_gpu
from aegis.model.quantize import require_package, require_plain
from aegis.model.trunk import Trunk, below, last_hidden


def check_attachable(
    base: Base, settings: ModelSettings, *, reward: LoraSettings | None = None
) -> None:
    """Check that what `settings` and the reward model ask for finds its place; load no weight.

    Raises:
        ModelError: if the base is no causal language model, is quantised already or of an
            architecture that cannot be adapted, or a gate or LoRA cannot be put where it is asked.
    """
    config = base.read_config()
    require_plain(config, where=f"base {base.spec!r}")
    require_package(settings.quantization)
    if settings.offload:
        require_gpu()
    trusted = base.trust_remote_code
    # Other attentions look into the mask, which has no content here.
    model = meta_model(config, spec=base.spec, trust_remote_code=trusted, attention="eager")
    require_adaptable(model, settings, where=f"base {base.spec!r}")
    if reward:
        lora_config(model, reward, field="train.reward.lora")


def require_adaptable(model: Any, settings: ModelSettings, *, where: str) -> None:
    """Attach everything to a model without weights, and run it as roles do, its layers left out.

    Raises:
        ModelError: if something finds no place, or the decoder does not take and give what roles
            need.
    """
    try:
        if not decoder_linears(model):
            raise AttributeError("no linear layer in a list called `layers`")
        _run_without_layers(model)
        with torch.device("meta"):
            attach(model, settings)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{where}: AEGIS cannot adapt the architecture {model.config.model_type!r} "
            f"({first_line(error)}); choose a base built like Llama: Mistral, Qwen, Gemma, Phi-3, "
            "Granite, Cohere …"
        ) from error


@torch.no_grad()
def _run_without_layers(model: Any) -> None:
    decoder = model.get_decoder()
    ids = torch.zeros(1, 1, dtype=torch.long, device="meta")
    entered = below(decoder, ids, torch.ones_like(ids), layer=0)
    beyond = Trunk(len(decoder.layers), entered.states)
    vocabulary_logits(model, last_hidden(decoder, ids, torch.ones_like(ids), trunk=beyond)[0])
