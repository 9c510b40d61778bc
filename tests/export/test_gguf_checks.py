from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aegis.errors import (
    ModelError,
)
from aegis.export.gguf_checks import check_tensors, check_tokenizer
from aegis.model.base import ModelFolder
from tests.conftest import byte_tokenizer


def test_a_tensor_that_the_converter_leaves_out_is_refused(
    folded: Path, converted: Path, tmp_path: Path
) -> None:
    check_tensors(converted, folded)
    tensors = load_file(folded / "model.safetensors")
    for name, tensor in {
        "model.layers.0.self_attn.o_proj.bias": torch.zeros(32),
        "model.rotary.weight": torch.zeros(4),
        "model.norm.weight": torch.zeros(33),
    }.items():
        save_file(
            {**tensors, name: tensor}, tmp_path / "model.safetensors", metadata={"format": "pt"}
        )
        with pytest.raises(ModelError, match=rf"{name} .* would be lost"):
            check_tensors(converted, tmp_path)


def test_a_tokenizer_that_reads_otherwise_is_refused(folded: Path, converted: Path) -> None:
    found = check_tokenizer(converted, folded, ModelFolder(folded).load_tokenizer())
    assert found == {"texts": 72, "tags": 10, "bos": 0, "eos": 1, "pad": 1}
    tokenizer = ModelFolder(folded).load_tokenizer()
    tokenizer.chat_template += " "
    with pytest.raises(ModelError, match="chat template"):
        check_tokenizer(converted, folded, tokenizer)
    tokenizer = ModelFolder(folded).load_tokenizer()
    tokenizer.pad_token = "<s>"
    with pytest.raises(ModelError, match="pad is token 1 in GGUF and 0"):
        check_tokenizer(converted, folded, tokenizer)
    with pytest.raises(ModelError, match=r"reads a text otherwise .* from token \d+"):
        check_tokenizer(converted, folded, byte_tokenizer())
