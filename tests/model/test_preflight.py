"""What cannot be trained, folded and served to the end is refused before any weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from aegis.config import GateSettings, LoraSettings, ModelSettings
from aegis.errors import ModelError
from aegis.model.base import meta_model, resolve_base
from aegis.model.preflight import check_attachable, check_prompts, check_weights, require_adaptable
from tests.conftest import random_model
from tests.model.architectures import ARCHITECTURES, tiny_config
from tests.model.test_adapted import IDS, MASK, randomised

SLICES = 8  # so that several processes share them
TAKES_SECONDS = {"kimi_linear"}  # without kernels of its own
CARRIED = {
    *(
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "gemma2",
        "gemma3_text",
    ),
    *("phi3", "granite", "granitemoe", "cohere", "cohere2", "hyperclovax", "olmo2"),
}
REFUSED = {"gpt2", "bloom", "falcon", "gpt_neox", "opt", "mamba", "bert", "bart"}


def refusal(config: Any) -> str | None:
    try:
        model = meta_model(config, spec="base", attention="eager")
        require_adaptable(model, ModelSettings(), where="base")
    except ModelError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore")  # what transformers and PEFT say of their own configs
@pytest.mark.parametrize("part", range(SLICES))
@torch.no_grad()
def test_every_causal_architecture_is_its_own_forward_or_refused(part: int) -> None:
    for architecture in sorted({*ARCHITECTURES} - TAKES_SECONDS)[part::SLICES]:
        config = tiny_config(architecture)
        message = refusal(config) if config else "not made here"
        assert not (message and architecture in CARRIED), message
        assert message or architecture not in REFUSED
        if message:
            assert not config or re.match(
                r"(base: AEGIS cannot adapt|model\.lora: no) .+; ", message
            )
            continue
        adapted = randomised(random_model(config))
        whole = adapted.base(input_ids=IDS, attention_mask=MASK, use_cache=False).logits
        hidden = adapted.hidden(IDS, MASK)
        trunk = adapted.trunk(IDS, MASK, layer=adapted.lowest_layer())
        same = {
            "atol": 1e-5,
            "rtol": 1e-5,
            "msg": lambda text, name=architecture: f"{name}: {text}",
        }
        torch.testing.assert_close(adapted.logits(hidden), whole, **same)
        torch.testing.assert_close(adapted.logits(hidden[:, -1]), whole[:, -1], **same)
        torch.testing.assert_close(adapted.hidden(IDS, MASK, trunk=trunk), hidden, **same)


def test_what_cannot_be_attached_is_told_before_weights_are_loaded(
    save_base: Callable[..., Path],
) -> None:
    base = resolve_base(str(save_base("gemma")))
    (base.folder / "model.safetensors").write_bytes(b"not read")
    check_attachable(base, ModelSettings())
    for settings, message in [
        (ModelSettings(gates=GateSettings(lm_head=True)), "drops lm_head.weight"),
        (ModelSettings(gates=GateSettings(also=("none*",))), "matches no linear layer"),
        (ModelSettings(lora=LoraSettings(targets=("w_pack",))), "no linear layer matches"),
    ]:
        with pytest.raises(ModelError, match=message):
            check_attachable(base, settings)


def test_a_model_of_another_kind_is_told(tmp_path: Path) -> None:
    from transformers import ViTConfig

    ViTConfig(hidden_size=32).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="no causal language model"):
        check_attachable(resolve_base(str(tmp_path)), ModelSettings())


def test_an_adapter_beside_the_model_is_told(save_base: Callable[..., Path]) -> None:
    folder = save_base("llama")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"would load unasked; merge it .+ or move it out"):
        resolve_base(str(folder))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a.weight": torch.zeros(2, 2, dtype=torch.uint8)}, "a.weight holds U8; give the base"),
        ({"a.qweight": torch.zeros(2, dtype=torch.int32)}, "a.qweight holds I32; give the base"),
        (
            {"a.weight": torch.zeros(2, dtype=torch.float8_e4m3fn)},
            "a.weight holds F8_E4M3; give the base",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "no whole safetensors file .+ lfs pull"),
        ({"position_ids": torch.zeros(1, 4, dtype=torch.long)}, None),
    ],
)
def test_weights_in_codes_and_cut_files_are_told(
    save_base: Callable[..., Path], weights: Any, message: str | None
) -> None:
    base = resolve_base(str(save_base("llama")))
    check_weights(base)
    more = base.folder / "model-2.safetensors"
    more.write_bytes(weights) if isinstance(weights, bytes) else save_file(weights, more)
    with pytest.raises(ModelError, match=message) if message else nullcontext():
        check_weights(base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos_token": None}, "must have an end token"),
        ({"pad_token": "[PAD]"}, r"'\[PAD\]' must have a row .+, which has 262; its id is 2\d\d"),
        ({"chat_template": "{{ raise_exception('never') }}"}, "cannot write a question .never"),
        ({"vocab_size": 200}, "which has 200 .+ ids go up to 260; give the tokenizer"),
        ({"vocab_size": 261}, None),  # the added token has no row, and needs none
        ({"chat_template": "{{ nothing.at.all }}"}, "cannot write a question"),
        ({"chat_template": "a" * 600}, "reads 512 tokens, and .+ takes 600 before"),
        ({}, None),
    ],
)
def test_a_tokenizer_that_cannot_ask_or_end_is_told(
    save_base: Callable[..., Path], change: dict[str, Any], message: str | None
) -> None:
    change = {**change}
    rows = change.pop("vocab_size", 262)
    base = resolve_base(str(save_base("llama", vocab_size=rows)))
    tokenizer = base.load_tokenizer()
    tokenizer.add_tokens(["[more]"])
    if "pad_token" in change:
        tokenizer.add_tokens(["[PAD]"])
    for name, value in change.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(base.folder)
    with pytest.raises(ModelError, match=message) if message else nullcontext():
        check_prompts(base, ModelSettings())
