"""What a base must be to be adapted, folded and served; checked before any weight is loaded."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from aegis.config import LoraSettings, ModelSettings
from aegis.errors import ModelError
from aegis.model.adapted import attach, decoder_linears, lora_config
from aegis.model.base import Base, context_length, first_line, meta_model
from aegis.model.lm_head import vocabulary_logits
from aegis.model.offload import require_gpu
from aegis.model.prompt import PromptEncoder
from aegis.model.quantize import require_package, require_plain
from aegis.model.trunk import Trunk, below, last_hidden


def check_attachable(
    base: Base, settings: ModelSettings, *, reward: LoraSettings | None = None
) -> None:
    """Check that the base can be adapted, and that what is asked for finds its place.

    Raises:
        ModelError: if it is no causal language model, or quantised already, or out of reach.
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


def check_weights(base: Base) -> None:
    """Raise ModelError if a weight file is cut or none at all, or holds a weight in codes."""
    for path in sorted(base.folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                parts = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"base {base.spec!r}: {path.name} is no whole safetensors file "
                f"({first_line(error)}); download it again (git lfs pull, if it is a pointer)"
            ) from error
        for name, kind in parts.items():
            if "weight" in name.rpartition(".")[2] and kind.startswith(("I", "U", "F8", "F4")):
                raise ModelError(
                    f"base {base.spec!r}: must hold its original weights, for quantised ones "
                    f"cannot be folded; {name} holds {kind}; give the base before quantisation"
                )


def check_prompts(base: Base, settings: ModelSettings) -> None:
    """Check that prompts can be written, and responses ended; raise ModelError if not."""
    where, tokenizer, config = f"base {base.spec!r}", base.load_tokenizer(), base.read_config()
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{where}: the tokenizer must have an end token, for a response has to end; "
            "it has none; name one as eos_token in tokenizer_config.json, as the base was trained"
        )
    rows, added = config.get_text_config().vocab_size, tokenizer.get_added_vocab()
    # What was added to a tokenizer may lack a row: it is given one, or never occurs in text.
    own = [number for token, number in tokenizer.get_vocab().items() if token not in added]
    if (last := max(own, default=0)) >= rows:
        raise ModelError(
            f"{where}: every token must have a row in the embedding, which has {rows} "
            f"(vocab_size in config.json); the tokenizer's ids go up to {last}; "
            "give the tokenizer that belongs to these weights"
        )
    if tokenizer.pad_token_id >= rows:
        raise ModelError(
            f"{where}: the padding token {tokenizer.pad_token!r} must have a row in the embedding, "
            f"which has {rows}; its id is {tokenizer.pad_token_id}; set pad_token to the end token"
        )
    encoder = PromptEncoder(tokenizer, settings.system_prompt)
    try:
        count = len(encoder.ids("Hello"))
    except Exception as error:  # a template may do what it likes
        raise ModelError(
            f"{where}: its chat template cannot write a question ({first_line(error)}); "
            "mend the template, or remove it for a plain form"
        ) from error
    if count >= (limit := context_length(config)):
        raise ModelError(
            f"{where}: reads {limit} tokens, and model.system_prompt with the chat template "
            f"takes {count} before a question begins; shorten the system prompt"
        )


def require_adaptable(model: Any, settings: ModelSettings, *, where: str) -> None:
    """Attach all to a model without weights and run it as roles do, its layers left out; raise
    ModelError if the decoder does not take and give what they need."""
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
