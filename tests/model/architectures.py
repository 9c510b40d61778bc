"""Tiny random models of every causal architecture that transformers knows and can make so small."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.conftest import SHAPE

ARCHITECTURES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
LARGEST = 10_000_000  # parameters
# What such configs set to the size of a real model, and what scales or caps logits.
_SMALL: dict[str, Any] = {
    **{"head_dim": 8, "rotary_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16},
    **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    **{"expert_ffn_hidden_size": 16, "ffn_hidden_size": 32},
    **{"n_routed_experts": 4, "num_experts": 4, "num_local_experts": 4},
    **{"num_experts_per_tok": 2, "num_experts_per_token": 2, "n_group": 1, "topk_group": 1},
    **{"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8},
    **{"index_head_dim": 16, "index_n_heads": 2},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 2},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"logits_scaling": 8.0, "logit_scale": 0.0625, "final_logit_softcapping": 3.0},
}


def tiny_config(architecture: str, **changes: Any) -> Any:
    """A config of two layers; None where transformers makes none of this shape, or a big model."""
    try:
        default = AutoConfig.for_model(architecture).to_dict()
        shape = {**SHAPE, "vocab_size": 64, "num_hidden_layers": 2, **changes}
        if "kv_lora_rank" in default:  # latent attention has as many keys as queries
            shape["num_key_value_heads"] = shape["num_attention_heads"]
        small = {key: value for key, value in _SMALL.items() if key in default}
        config = AutoConfig.for_model(architecture, **{**shape, **small})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception:  # each class has its own rules
        return None
    return config if sum(each.numel() for each in model.parameters()) <= LARGEST else None
