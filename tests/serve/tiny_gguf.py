"""Write a tiny model as a GGUF file, without llama.cpp's converter: what the engine's tests need of
one, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

LLAMA_ROPE = (
    "llama",
    "mistral",
)  # llama.cpp turns neighbouring pairs there, transformers the two halves


def write_gguf(model: Any, tokenizer: Any, path: Path, *, kind: str = "f32") -> Path:
    """The model in f32 or f16 (norms and biases in f32, as converters write them)."""
    import gguf

    config = model.config
    architecture = {"mistral": "llama"}.get(config.model_type, config.model_type)
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    writer = gguf.GGUFWriter(str(path), str(architecture))
    writer.add_file_type(
        gguf.LlamaFileType.ALL_F32 if kind == "f32" else gguf.LlamaFileType.MOSTLY_F16
    )
    _describe(writer, config)
    _tokens(writer, tokenizer, config.vocab_size)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        values = tensor.float().numpy()
        if config.model_type in LLAMA_ROPE and (".q_proj." in name or ".k_proj." in name):
            values = _paired(
                values,
                config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads,
            )
        if kind == "f16" and values.ndim > 1:
            values = values.astype(np.float16)
        writer.add_tensor(str(names.get_name(name, try_suffixes=(".weight", ".bias"))), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: Any, config: Any) -> None:
    rope = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.max_position_embeddings)
        writer.add_sliding_window(config.max_position_embeddings)


def _tokens(writer: Any, tokenizer: Any, rows: int) -> None:
    import gguf

    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    added = set(tokenizer.get_added_vocab().values())
    kinds = {True: gguf.TokenType.USER_DEFINED, False: gguf.TokenType.NORMAL}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(rows)])
    writer.add_token_types(
        [
            kinds[number in added] if number in texts else gguf.TokenType.UNUSED
            for number in range(rows)
        ]
    )
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_token_merges(
        ["a b"]
    )  # llama.cpp asks for some; the engine tokenizes with the model folder's own tokenizer


def _paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a projection in the order that llama.cpp's rotary embedding expects."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)
