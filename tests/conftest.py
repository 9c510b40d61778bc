"""Shared fixtures: tiny random models of real architectures with a tokenizer made here, so that no
network is needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(
    max(1, 2 // WORKERS)
)  # processes that want the same core slow each other down several times
if WORKERS > 1:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
ARCHITECTURES = ("llama", "phi3", "qwen2", "qwen3", "mistral", "gemma")


def byte_tokenizer() -> Any:
    """One token a byte, and a chat template: small, exact, and able to write Japanese."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=specials[2:],
    )
    fast.chat_template = TEMPLATE
    return fast


def tagged_tokenizer() -> Any:
    """The same with the protocol's tags."""
    from aegis.model.tags import add_tags

    tokenizer = byte_tokenizer()
    add_tags(tokenizer, tiny_model())
    return tokenizer


def tiny_model(architecture: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """A random model of the architecture, in float32 and evaluation mode."""
    from transformers import AutoConfig

    shape = {**SHAPE, **changes}
    if architecture in ("gemma", "qwen3"):
        shape.setdefault("head_dim", 8)
    return random_model(AutoConfig.for_model(architecture, **shape), seed=seed)


def random_model(config: Any, *, seed: int = 0) -> Any:
    """A random model with this config, in float32 and evaluation mode."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():  # default initialisation leaves logits almost flat
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def save_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a tiny base folder, as a user would have it."""

    def save(architecture: str = "llama", **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        tiny_model(architecture, **changes).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)  # a shared one may have got tags by now
        return folder

    return save


@pytest.fixture(scope="session")
def base_folder(save_base: Callable[..., Path]) -> Path:
    return save_base("llama", tie_word_embeddings=True)
