"""What a setting means: its description, type, bounds and default, from the settings' schema."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aegis.config.root import Config
from aegis.errors import ConfigError

_TYPES = {"string": "text", "boolean": "true | false", "object": "section"}
_BOUNDS = {
    "minimum": ">= {:g}",
    "exclusiveMinimum": "> {:g}",
    "maximum": "<= {:g}",
    "exclusiveMaximum": "< {:g}",
    "minLength": "not empty",
    "minItems": "not empty",
}

# What settings are called in transformers, PEFT, TRL, Axolotl, LLaMA-Factory and Unsloth.
_NAMES = {
    "base": "model_name_or_path pretrained_model_name_or_path base_model model_name model_id",
    "runs": "output_dir save_dir logging_dir",
    "seed": "random_state random_seed data_seed",
    "tracking": "report_to use_wandb wandb_project",
    "data.records": "dataset dataset_name dataset_path data_path data_files train_file",
    "data.split.validation": "val_set_size eval_ratio val_size",
    "model.dtype": "torch_dtype bf16 fp16 mixed_precision",
    "model.quantization": "load_in_4bit load_in_8bit quantization_bit bnb_4bit_quant_type",
    "model.lora.rank": "lora_r lora_rank r",
    "model.lora.alpha": "lora_alpha",
    "model.lora.dropout": "lora_dropout",
    "model.lora.targets": "target_modules lora_target lora_target_modules",
    "train.epochs": "num_train_epochs num_epochs n_epochs max_steps",
    "train.batch_tokens": "per_device_train_batch_size batch_size",
    "train.gradient_accumulation": "gradient_accumulation_steps",
    "train.max_length": "max_seq_length max_seq_len sequence_len cutoff_len model_max_length",
    "train.lr": "learning_rate",
    "train.warmup": "warmup_ratio warmup_steps num_warmup_steps",
    "train.clip_norm": "max_grad_norm gradient_clip_val gradient_clipping",
    "train.ppo.kl": "init_kl_coef kl_coef kl_penalty",
}
OTHER_NAMES = {name: setting for setting, names in _NAMES.items() for name in names.split()}


@dataclass(frozen=True)
class Explanation:
    """A setting, or a section with its settings; `default` is "required" where there is none."""

    key: str
    description: str
    type: str
    bounds: str
    default: Any
    settings: tuple[Explanation, ...] = ()


def explain(key: str = "") -> Explanation:
    """Explain the setting or section at a dotted path; the empty one is the whole.

    Raises:
        ConfigError: if there is none; the message names the nearest.
    """
    known = _known()
    if key not in known:
        name = key.rpartition(".")[2]
        near = meant_by(name) or difflib.get_close_matches(key, known, n=1, cutoff=0)
        raise ConfigError(f"{key} is not a setting; did you mean {' or '.join(near)}?")
    return known[key]


def meant_by(name: str) -> list[str]:
    """Return the settings that other trainers call so, or that have the name in some section."""
    if name in OTHER_NAMES:
        return [OTHER_NAMES[name]]
    return [key for key in _known() if key.endswith(f".{name}")]


@functools.cache
def _known() -> dict[str, Explanation]:
    schema = Config.model_json_schema()
    whole = _describe("", schema, Config().model_dump(mode="json"), schema["$defs"])
    return {explanation.key: explanation for explanation in _walk(whole)}


def _walk(explanation: Explanation) -> Iterator[Explanation]:
    yield explanation
    for setting in explanation.settings:
        yield from _walk(setting)


def _describe(key: str, node: dict[str, Any], default: Any, defs: dict[str, Any]) -> Explanation:
    inner = _resolve(node, defs)
    holder = _resolve(inner.get("items", inner), defs)  # a list of sections has their settings
    settings = [
        _describe(
            f"{key}.{name}".removeprefix("."),
            child,
            default[name] if isinstance(default, dict) else child.get("default", "required"),
            defs,
        )
        for name, child in holder.get("properties", {}).items()
    ]
    description = " ".join((node.get("description") or inner.get("description", "")).split())
    bounds = ", ".join(dict.fromkeys(_bounds(inner)))
    return Explanation(key, description, _type(inner, defs), bounds, default, tuple(settings))


def _resolve(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    return defs[node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def _type(node: dict[str, Any], defs: dict[str, Any]) -> str:
    node = _resolve(node, defs)
    if options := node.get("anyOf"):
        return " | ".join(_type(option, defs) for option in options)
    if options := node.get("enum", [node["const"]] if "const" in node else []):
        return " | ".join(map(str, options))
    if node["type"] == "array":
        if parts := node.get("prefixItems"):
            return f"[{', '.join(_type(part, defs) for part in parts)}]"
        return f"list of {_type(node['items'], defs)}"
    return _TYPES.get(node["type"]) or str(node["type"])


def _bounds(node: dict[str, Any]) -> Iterator[str]:
    for name, text in _BOUNDS.items():
        if name in node and "prefixItems" not in node:
            yield text.format(node[name])
    for part in [*node.get("anyOf", ()), *node.get("prefixItems", ())]:
        yield from _bounds(part)
