"""Attach LoRA, gates and a decision head to a frozen base."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from aegis.config import GateSettings, LoraSettings, ModelSettings
from aegis.errors import ModelError
from aegis.model.head import DecisionHead
from aegis.model.load import Base, read_config
from aegis.so8 import BLOCK, Gate

# Their GGUF converters drop lm_head.weight, so that a gate folded into it would be lost without a word.
LM_HEAD_DROPPED = frozenset({"gemma", "gemma2"})
_LAYER = re.compile(r"\.layers\.(\d+)\.")


class Adapted(nn.Module):
    """A frozen base with its attachments, all of them reachable as one module.

    Args:
        peft: the base inside PEFT, LoRA attached.
        gates: one gate a site, by the site's dotted name in the base.
        head: the decision head.
    """

    def __init__(self, peft: PeftModel, gates: dict[str, Gate], head: DecisionHead) -> None:
        super().__init__()
        self.peft, self.head = peft, head
        self.gates = nn.ModuleDict({_key(name): gate for name, gate in gates.items()})
        self.gate_names = tuple(gates)
        for name in gates:
            site = cast(nn.Module, self.base).get_submodule(name)
            site.register_forward_pre_hook(_turn(self.gate(name)))

    @property
    def base(self) -> Any:
        """The transformers model, LoRA layers in place."""
        return self.peft.get_base_model()

    @property
    def device(self) -> torch.device:
        return self.head.linear.weight.device

    def gate(self, name: str) -> Gate:
        return cast(Gate, self.gates[_key(name)])

    def all_gates(self) -> list[Gate]:
        return [self.gate(name) for name in self.gate_names]

    def set_alpha(self, alpha: float) -> None:
        """Open every gate to σ(alpha)."""
        for gate in self.all_gates():
            gate.set_alpha(alpha)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(batch, time) → (batch, time, d): last hidden states, after the final norm and before the gate on lm_head."""
        return self.base.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d) → (..., vocabulary): what the whole model would give for these hidden states."""
        return vocabulary_logits(self.base, hidden)

    def decide(self, hidden: Tensor, prompt_mask: Tensor) -> Tensor:
        """(batch, 4) decision logits from the prompt's part of the hidden states."""
        return self.head(hidden, prompt_mask)


def vocabulary_logits(model: Any, hidden: Tensor) -> Tensor:
    """lm_head and, where the architecture has one, its soft cap (Gemma 2)."""
    logits = model.get_output_embeddings()(hidden)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def attach(model: Any, settings: ModelSettings) -> Adapted:
    """Freeze the base and attach everything that `settings` ask for.

    With geodesic gates the output is the base's, to the last bit, until training starts; an additive gate scales by 1 + g.

    Raises:
        ModelError: if a gate or LoRA cannot be put where it is asked.
    """
    sites = gate_sites(model, settings.gates)
    gates = {
        name: Gate(width, mode=settings.gates.mode, learn_alpha=settings.gates.learn_alpha) for name, width in sites.items()
    }
    hidden_size = model.config.get_text_config().hidden_size
    head = DecisionHead(hidden_size, pooling=settings.pooling, system_prompt=settings.system_prompt)
    peft = cast(PeftModel, get_peft_model(model, lora_config(model, settings.lora)))
    return Adapted(peft, gates, head)


def check_attachable(base: Base, settings: ModelSettings) -> None:
    """Everything that `settings` ask for finds its place in the base; no weight is loaded.

    Raises:
        ModelError: if the base is no causal language model, or a gate or LoRA cannot be put where it is asked.
    """
    config = read_config(base.folder, spec=base.spec, trust_remote_code=settings.trust_remote_code)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=settings.trust_remote_code)
    except Exception as error:  # whatever a model class makes of a config that is not its own
        first = (str(error).splitlines() or [""])[0][:200]
        raise ModelError(f"base {base.spec!r}: is no causal language model that AEGIS can adapt ({first})") from error
    gate_sites(model, settings.gates)
    lora_config(model, settings.lora)


def lora_config(model: Any, settings: LoraSettings) -> LoraConfig:
    """PEFT's config for the linear layers in the asked depth range.

    Raises:
        ModelError: if no layer matches.
    """
    wanted = None if settings.targets == "all-linear" else settings.targets
    suffixes = (wanted,) if isinstance(wanted, str) else wanted
    names = [
        name
        for name in _linears(model)
        if _in_depth(model, name, settings.layers) and (suffixes is None or name.split(".")[-1] in suffixes)
    ]
    if not names:
        raise ModelError(
            f"model.lora: no linear layer matches targets {settings.targets!r} in the depth range {settings.layers}; "
            "use all-linear or names such as q_proj"
        )
    return LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )


def gate_sites(model: Any, settings: GateSettings) -> dict[str, int]:
    """Where the gates sit: name → width of the layer's input.

    Raises:
        ModelError: if lm_head is asked for where the export would lose it, a pattern matches nothing, or a width is no
            multiple of 8.
    """
    linears = _linears(model)
    sites = {
        name: layer.in_features
        for name, layer in linears.items()
        if name.endswith(".o_proj") and _in_depth(model, name, settings.layers)
    }
    if (refusal := lm_head_refusal(model.config.model_type)) and settings.lm_head is True:
        raise ModelError(f"model.gates.lm_head: {refusal}; set it to auto or false")
    if settings.lm_head and not refusal:
        name, layer = next((n, m) for n, m in model.named_modules() if m is model.get_output_embeddings())
        sites[name] = layer.in_features
    for pattern in settings.also:
        matched = {name: layer.in_features for name, layer in linears.items() if fnmatch.fnmatch(name, pattern)}
        if not matched:
            raise ModelError(f"model.gates.also: {pattern!r} matches no linear layer, e.g. {next(iter(linears))!r}")
        sites |= matched
    for name, width in sites.items():
        if width % BLOCK:
            raise ModelError(f"model.gates: {name} is {width} wide, no multiple of {BLOCK}; leave it out")
    return sites


def lm_head_refusal(model_type: str) -> str | None:
    """Why this architecture gets no gate on lm_head, or None."""
    if model_type not in LM_HEAD_DROPPED:
        return None
    return f"a gate on the lm_head of {model_type} would be lost: its GGUF converter drops lm_head.weight"


@dataclass(frozen=True)
class FreezeReport:
    """Numbers of parameters: trainable by kind, and the frozen base."""

    trainable: dict[str, int]
    frozen: int

    @property
    def total(self) -> int:
        return sum(self.trainable.values()) + self.frozen

    @property
    def percent(self) -> float:
        """Trainable share of all parameters, in percent."""
        return 100 * sum(self.trainable.values()) / self.total

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.trainable.items() if count)
        return f"{sum(self.trainable.values()):,} of {self.total:,} parameters train ({self.percent:.2f} %): {kinds}"


def freeze(adapted: Adapted) -> FreezeReport:
    """Report what trains; the base never does.

    Raises:
        ModelError: if a weight of the base would train.
    """
    trainable, frozen = {"lora": 0, "gates": 0, "decision_head": 0}, 0
    for name, parameter in adapted.named_parameters():
        kind = _kind(name)
        if not parameter.requires_grad:
            frozen += parameter.numel()
        elif kind == "base":
            raise ModelError(f"the base weight {name} would train; freeze it with requires_grad_(False)")
        else:
            trainable[kind] += parameter.numel()
    return FreezeReport(trainable, frozen)


def parameters_by_kind(adapted: Adapted) -> dict[str, list[nn.Parameter]]:
    """What trains, by kind: lora, gates, decision_head."""
    groups: dict[str, list[nn.Parameter]] = {"lora": [], "gates": [], "decision_head": []}
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            groups[_kind(name)].append(parameter)
    return groups


def _kind(name: str) -> str:
    if name.startswith("gates."):
        return "gates"
    if name.startswith("head."):
        return "decision_head"
    return "lora" if ".lora_" in name else "base"


def _turn(gate: Gate) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (gate(inputs[0]), *inputs[1:])

    return hook


def _linears(model: Any) -> dict[str, nn.Linear]:
    """Linear layers inside the decoder's blocks, by name; quantised ones are subclasses."""
    modules = model.named_modules()
    return {name: layer for name, layer in modules if isinstance(layer, nn.Linear) and _LAYER.search(f".{name}")}


def _in_depth(model: Any, name: str, shares: tuple[float, float]) -> bool:
    depth = model.config.get_text_config().num_hidden_layers
    match = _LAYER.search(f".{name}")
    return match is not None and shares[0] * depth <= int(match.group(1)) < shares[1] * depth


def _key(name: str) -> str:
    return name.replace(".", "/")
