"""Attach LoRA, gates, tag rows and a decision head to a frozen base."""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from aegis.config import GateSettings, LoraSettings, ModelSettings
from aegis.errors import ModelError
from aegis.model.heads import DecisionHead
from aegis.model.lm_head import lm_head_refusal, vocabulary_logits
from aegis.model.quantize import count
from aegis.model.tags import TagRows, Tags
from aegis.model.token_head import TokenHead
from aegis.model.trunk import Trunk, below, last_hidden
from aegis.protocol.decisions import NAMES
from aegis.so8 import BLOCK, Gate

KINDS: tuple[str, ...] = ("lora", "gates", "tags", "decision_head")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


Role = Literal["policy", "reference", "reward", "base"]
_ADAPTERS: dict[Role, list[str]] = {
    "policy": ["default"],
    "reference": ["reference"],
    "reward": ["reference", "reward"],
    "base": [],
}


class Adapted(nn.Module):
    """A frozen base with its attachments, all of them reachable as one module.

    It can act in several roles with one copy of the base: as the `policy` that trains; as the
    `reference`, a frozen copy of the policy's LoRA, gates and decision head; as the `reward` model,
    whose LoRA stands on top of the reference; as the bare `base`.

    Args:
        peft: the base inside PEFT, LoRA attached.
        gates: one gate a site, by the site's dotted name in the base.
        rows: what the tags' rows learn; None for a base without tags.
    """

    def __init__(
        self,
        peft: PeftModel,
        gates: dict[str, Gate],
        head: DecisionHead,
        rows: TagRows | None = None,
    ) -> None:
        super().__init__()
        self.peft, self.head, self.rows = peft, head, rows
        self.gates = nn.ModuleDict({_key(name): gate for name, gate in gates.items()})
        self.reference_gates: nn.ModuleDict | None = None
        self.reference_head: DecisionHead | None = None
        self.gate_names = tuple(gates)
        self.role: Role = "policy"
        self.training_adapter = "default"
        for name in gates:
            site = cast(nn.Module, self.base).get_submodule(name)
            site.register_forward_pre_hook(self._rotate(_key(name)))
        if rows:
            if isinstance(head, TokenHead):
                rows.follow(lambda: cast(TokenHead, self.head).rows(), shared=self._one_table())
            rows.hook(self.base)

    @property
    def base(self) -> Any:
        """The transformers model, LoRA layers in place."""
        return self.peft.get_base_model()

    @property
    def device(self) -> torch.device:
        return self.head.linear.weight.device

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.base.get_decoder().layers)

    def gate(self, name: str) -> Gate:
        return cast(Gate, self.gates[_key(name)])

    def all_gates(self) -> list[Gate]:
        return [self.gate(name) for name in self.gate_names]

    def set_alpha(self, alpha: float) -> None:
        """Open every gate to σ(alpha)."""
        for gate in self.all_gates():
            gate.set_alpha(alpha)

    def hidden(self, ids: Tensor, mask: Tensor, *, trunk: Trunk | None = None) -> Tensor:
        """(batch, time) → (batch, time, d): after the final norm, before the gate on lm_head."""
        return last_hidden(self.base.get_decoder(), ids, mask, trunk=trunk)[0]

    def hidden_and_trunk(
        self, ids: Tensor, mask: Tensor, *, layer: int, trunk: Trunk | None = None
    ) -> tuple[Tensor, Trunk]:
        """Return the last hidden states, and what entered `layer` on the way."""
        hidden, caught = last_hidden(self.base.get_decoder(), ids, mask, trunk=trunk, catch=layer)
        return hidden, cast(Trunk, caught)

    def trunk(self, ids: Tensor, mask: Tensor, *, layer: int) -> Trunk:
        """Return what enters `layer`."""
        return below(self.base.get_decoder(), ids, mask, layer=layer)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d) → (..., vocabulary), as the whole model would."""
        return vocabulary_logits(self.base, hidden)

    def decide(self, hidden: Tensor, prompt_mask: Tensor) -> Tensor:
        """Return (batch, 4) decision logits by the policy's head or the reference's."""
        head = self.reference_head if self.role == "reference" else self.head
        return cast(DecisionHead, head).logits(self.base, hidden, prompt_mask)

    def add_reference(self) -> None:
        """Keep a frozen copy of the policy as it is now."""
        self.peft.add_adapter("reference", self.peft.peft_config["default"])
        self.reference_gates = copy.deepcopy(self.gates).requires_grad_(False)
        self.reference_head = copy.deepcopy(self.head).requires_grad_(False)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if ".lora_" in name and ".reference." in name:
                    parameter.copy_(self.get_parameter(name.replace(".reference.", ".default.")))
        self._switch(self.role)

    def add_reward(self, settings: LoraSettings) -> None:
        """Add the reward model's own LoRA; below `settings.layers` it is the reference."""
        self.peft.add_adapter("reward", lora_config(self.base, settings))
        self._switch(self.role)

    def train_only(self, adapter: Literal["default", "reward"]) -> None:
        """Let the policy train (with gates, tags and decision head), or the reward model."""
        self.training_adapter = adapter
        for module in (self.gates, self.head, *([self.rows] if self.rows else [])):
            module.requires_grad_(adapter == "default")
        self._switch(self.role)

    @contextlib.contextmanager
    def acting_as(self, role: Role) -> Iterator[None]:
        """Make forward passes that role's within."""
        before = self.role
        self._switch(role)
        try:
            yield
        finally:
            self._switch(before)

    def lowest_layer(self) -> int:
        """Return the first decoder layer with LoRA or a gate; below it all roles are one."""
        gates = [f".{name}." for name in self.gate_names]
        return self._first_layer([*self._lora_names("default"), *gates])

    def reward_layer(self) -> int:
        """Return the first decoder layer in which the reward model differs from the reference."""
        return self._first_layer(self._lora_names("reward"))

    def _one_table(self) -> bool:
        """Return whether embedding and lm_head are one and stay so: a gate would part them."""
        embedding, head = self.base.get_input_embeddings(), self.base.get_output_embeddings()
        gated = any(self.base.get_submodule(name) is head for name in self.gate_names)
        return head.weight is embedding.weight and not gated

    def _lora_names(self, adapter: str) -> list[str]:
        names = (name for name, _ in self.peft.named_parameters())
        return [name for name in names if ".lora_" in name and f".{adapter}." in name]

    def _first_layer(self, names: list[str]) -> int:
        matches = (_LAYER.search(name) for name in names)
        return min((int(match.group(1)) for match in matches if match), default=self.depth)

    def _switch(self, role: Role) -> None:
        tuner: Any = self.peft.base_model
        if role == "base":
            tuner.disable_adapter_layers()
        else:
            if self.role == "base":
                tuner.enable_adapter_layers()
            tuner.set_adapter(_ADAPTERS[role])
        self.role = role
        for name, parameter in self.peft.named_parameters():  # PEFT lets whatever is active train
            if ".lora_" in name:
                parameter.requires_grad_(f".{self.training_adapter}." in name)

    def _rotate(self, key: str) -> Callable[..., tuple[Tensor, ...] | None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if self.role == "base":
                return None
            gates = self.gates if self.role == "policy" else self.reference_gates
            return (cast(nn.ModuleDict, gates)[key](inputs[0]), *inputs[1:])

        return hook


def attach(model: Any, settings: ModelSettings, *, tags: Tags | None = None) -> Adapted:
    """Freeze the base and attach what `settings` ask for, and rows for the tags if it has them.

    With geodesic gates the output is the base's, to the last bit, until training starts; an
    additive gate scales by 1 + g.

    Raises:
        ModelError: if a gate or LoRA cannot be put where it is asked.
    """
    sites = gate_sites(model, settings.gates)
    mode, learn_alpha = settings.gates.mode, settings.gates.learn_alpha
    gates = {name: Gate(width, mode=mode, learn_alpha=learn_alpha) for name, width in sites.items()}
    hidden_size = model.config.get_text_config().hidden_size
    shared: Any = {"pooling": settings.pooling, "system_prompt": settings.system_prompt}
    if settings.head == "token":
        ids = tags.decisions if tags else range(len(NAMES))  # any will do to count memory
        head = TokenHead(hidden_size, **shared, ids=ids)
    else:
        head = DecisionHead(hidden_size, **shared)
    rows = TagRows.of(model, tags) if tags else None
    peft = cast(PeftModel, get_peft_model(model, lora_config(model, settings.lora)))
    return Adapted(peft, gates, head, rows)


def lora_config(model: Any, settings: LoraSettings, *, field: str = "model.lora") -> LoraConfig:
    """Return PEFT's config for the linear layers in the asked depth range.

    Raises:
        ModelError: if no layer matches.
    """
    targets = settings.targets
    suffixes = (targets,) if isinstance(targets, str) else targets
    names = [
        name
        for name in decoder_linears(model)
        if _in_depth(model, name, settings.layers)
        and (targets == "all-linear" or name.split(".")[-1] in suffixes)
    ]
    if not names:
        raise ModelError(
            f"{field}: no linear layer matches targets {targets!r} in the depth range "
            f"{settings.layers}; widen the range, or use all-linear"
        )
    return LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )


def gate_sites(model: Any, settings: GateSettings) -> dict[str, int]:
    """Return where the gates sit: name → width of the layer's input.

    Raises:
        ModelError: if lm_head is asked for where the export would lose it, a pattern matches
            nothing, or a width is no multiple of 8.
    """
    widths = {name: layer.in_features for name, layer in decoder_linears(model).items()}
    sites = {
        name: width
        for name, width in widths.items()
        if name.endswith(".o_proj") and _in_depth(model, name, settings.layers)
    }
    if (refusal := lm_head_refusal(model.config.model_type)) and settings.lm_head is True:
        raise ModelError(f"model.gates.lm_head: {refusal}; set it to auto or false")
    if settings.lm_head and not refusal:
        head = model.get_output_embeddings()
        name = next(name for name, module in model.named_modules() if module is head)
        sites[name] = head.in_features
    for pattern in settings.also:
        matched = {name: widths[name] for name in fnmatch.filter(widths, pattern)}
        if not matched:
            raise ModelError(
                f"model.gates.also: {pattern!r} matches no linear layer, "
                f"e.g. {next(iter(widths))!r}"
            )
        sites |= matched
    for name, width in sites.items():
        if width % BLOCK:
            raise ModelError(
                f"model.gates: {name} is {width} wide, no multiple of {BLOCK}; leave it out"
            )
    return sites


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
        return (
            f"{sum(self.trainable.values()):,} of {self.total:,} parameters train "
            f"({self.percent:.2f} %): {kinds}"
        )


def freeze_report(adapted: Adapted) -> FreezeReport:
    """Report what trains; the base never does.

    Raises:
        ModelError: if a weight of the base would train.
    """
    trainable: dict[str, int] = dict.fromkeys(KINDS, 0)
    frozen = 0
    for name, parameter in adapted.named_parameters():
        kind = _kind(name)
        if not parameter.requires_grad:
            frozen += count(parameter)
        elif kind == "base":
            raise ModelError(
                f"the base weight {name} would train; freeze it with requires_grad_(False)"
            )
        else:
            trainable[kind] += parameter.numel()
    return FreezeReport(trainable, frozen)


def parameters_by_kind(adapted: Adapted) -> dict[str, list[nn.Parameter]]:
    """Return what trains, by kind."""
    groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in KINDS}
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            groups[_kind(name)].append(parameter)
    return groups


def _kind(name: str) -> str:
    kinds = {"gates.": "gates", "head.": "decision_head", "rows.": "tags"}
    for prefix, kind in kinds.items():
        if name.startswith(prefix):
            return kind
    return "lora" if ".lora_" in name else "base"


def decoder_linears(model: Any) -> dict[str, nn.Linear]:
    """Return the linear layers in the decoder's blocks by name, quantised or under LoRA too."""
    return {
        name.removesuffix(".base_layer"): layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and ".lora_" not in name and _LAYER.search(f".{name}")
        # Those that a model's own file defines (routers, grouped layers) compute something else.
        if not type(layer).__module__.rpartition(".")[2].startswith("modeling_")
    }


def _in_depth(model: Any, name: str, shares: tuple[float, float]) -> bool:
    depth = model.config.get_text_config().num_hidden_layers
    match = _LAYER.search(f".{name}")
    return match is not None and shares[0] * depth <= int(match.group(1)) < shares[1] * depth


def _key(name: str) -> str:
    return name.replace(".", "/")
