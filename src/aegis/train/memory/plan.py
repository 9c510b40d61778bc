"""What a training needs of the device's memory, before a weight is loaded: whether it fits, and
what to change if not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from aegis.config import Config, parse_config
from aegis.data.seed import seed_files
from aegis.errors import ConfigError
from aegis.model.base import Base
from aegis.model.device import bfloat16_is_fast

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """Where the training would run.

    Args:
        memory: bytes that are free there.
        bfloat16: its hardware multiplies bfloat16.
    """

    name: str
    kind: Literal["cuda", "cpu"]
    memory: int
    bfloat16: bool

    @classmethod
    def here(cls) -> Device:
        """Return the first GPU, or this machine's main memory."""
        if torch.cuda.is_available():
            name = torch.cuda.get_device_name()
            return cls(name, "cuda", torch.cuda.mem_get_info()[0], bfloat16_is_fast())
        import psutil

        return cls("main memory", "cpu", psutil.virtual_memory().available, bfloat16_is_fast())


@dataclass(frozen=True)
class StepPlan:
    """Bytes of one step at its peak, by what takes them; one step at a time is in memory."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Remedy:
    """One setting to change: the bytes that it alone saves where most are missing, and whether that
    is enough."""

    setting: str
    value: Any
    saves: int
    enough: bool

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        enough = ", enough" if self.enough else ""
        return f"set {self.setting}: {value} (saves {self.saves / GIB:.1f} GiB{enough})"


@dataclass(frozen=True)
class Plan:
    """What will be needed, and what there is.

    Args:
        remedies: what would help if it does not fit, most effective first.
        together: as many of them, in that order, as make it fit; empty if one is enough, or if all
            are too little.
    """

    base: str
    device: Device
    steps: tuple[StepPlan, ...]
    remedies: tuple[Remedy, ...] = ()
    together: tuple[Remedy, ...] = ()

    @property
    def worst(self) -> StepPlan:
        return max(self.steps, key=lambda step: step.total)

    @property
    def fits(self) -> bool:
        return self.worst.total <= self.device.memory

    def to_json(self) -> dict[str, Any]:
        device = self.device
        return {
            "base": self.base,
            "device": {"name": device.name, "kind": device.kind, "bytes": device.memory},
            "fits": self.fits,
            "peak_bytes": self.worst.total,
            "steps": [
                {"step": step.name, "bytes": step.total, "parts": step.parts} for step in self.steps
            ],
            "remedies": [vars(remedy) for remedy in self.remedies],
            "together": [remedy.setting for remedy in self.together],
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return (part, memory) for a table: every step, and under it what takes its memory."""
        rows = []
        for step in self.steps:
            rows.append((step.name, f"{step.total / GIB:.2f} GiB"))
            rows += [
                (f"  {part}", f"{size / GIB:.2f}") for part, size in step.parts.items() if size
            ]
        return [*rows, (f"free on {self.device.name}", f"{self.device.memory / GIB:.2f} GiB")]

    def advice(self) -> list[str]:
        """Return lines that say whether it fits, and what to change."""
        worst, there = self.worst, self.device.memory / GIB
        need = f"{worst.name} needs {worst.total / GIB:.1f} of {there:.1f} GiB"
        if self.fits:
            return [f"fits {self.device.name}: {need}"]
        lines = [f"does not fit {self.device.name}: {need}", *map(str, self.remedies)]
        if self.together:
            changes = ", ".join(f"{remedy.setting}: {remedy.value}" for remedy in self.together)
            lines.append(f"together enough: {changes}")
        elif not any(remedy.enough for remedy in self.remedies):
            remedy = "take a smaller base or a larger device"
            lines.append(f"all of them together are not enough; {remedy}")
        return lines


StepsOf = Callable[[Config], tuple[StepPlan, ...]]


Known = dict[Any, Any]


def plan(
    config: Config, base: Base, *, device: Device | None = None, known: Known | None = None
) -> Plan:
    """Estimate every step of the training from the base's config.json; no weight is read.

    Activations are not estimated by a formula: the objective's own step runs on weights without
    content (`rehearsal`), at the longest rows that the settings allow.

    Args:
        known: what earlier plans for this base found, to be shared with later ones.

    Raises:
        ModelError: if it is no causal language model, or its code looks at missing numbers.
    """
    from aegis.train.memory.steps import plan_steps

    device = device or Device.here()
    steps_of = functools.partial(
        plan_steps,
        own=base.read_config(),
        spec=base.spec,
        device=device,
        known={} if known is None else known,
    )
    steps = steps_of(config)
    if max(step.total for step in steps) <= device.memory:
        return Plan(base.spec, device, steps)
    remedies = _remedies(config, steps, steps_of, device)
    together: list[Remedy] = []
    if not any(remedy.enough for remedy in remedies):
        together = _together(config, remedies, steps_of, device)
    return Plan(base.spec, device, steps, tuple(remedies), tuple(together))


def _remedies(
    config: Config, steps: tuple[StepPlan, ...], steps_of: StepsOf, device: Device
) -> list[Remedy]:
    """Return every single change that saves something where it is missing, most effective first."""
    remedies = []
    for setting, value in _candidates(config, device):
        changed = steps_of(_changed(config, setting, value))
        saves = max(
            before.total - after.total
            for before, after in zip(steps, changed, strict=True)
            if before.total > device.memory
        )
        if saves > 0:
            enough = all(step.total <= device.memory for step in changed)
            remedies.append(Remedy(setting, value, saves, enough))
    return sorted(remedies, key=lambda remedy: -remedy.saves)


def _together(
    config: Config, remedies: list[Remedy], steps_of: StepsOf, device: Device
) -> list[Remedy]:
    taken: list[Remedy] = []
    for remedy in remedies:
        try:
            config = _changed(config, remedy.setting, remedy.value)
        except ConfigError:
            # It contradicts one that is taken: half the batch may not divide by twice the
            # minibatches.
            continue
        taken.append(remedy)
        if all(step.total <= device.memory for step in steps_of(config)):
            return taken
    return []


def _candidates(config: Config, device: Device) -> list[tuple[str, Any]]:
    """Return what could be changed, each by one notch."""
    model, train = config.model, config.train
    changes: list[tuple[str, Any]] = []
    if model.quantization != "nf4":
        changes.append(("model.quantization", "nf4"))
    if model.dtype == "float32" and device.bfloat16:
        changes.append(("model.dtype", "bfloat16"))
    if not model.gradient_checkpointing:
        changes.append(("model.gradient_checkpointing", True))
    elif device.kind == "cuda" and not model.offload and model.quantization != "int8":
        changes.append(("model.offload", True))
    halves = {
        "train.batch_tokens": train.batch_tokens,
        "train.max_length": train.max_length,
        "model.lora.rank": model.lora.rank,
    }
    if train.algorithm == "dpo":
        halves["train.dpo.batch_tokens"] = train.dpo.batch_tokens
    if train.algorithm in ("ppo", "grpo", "rloo"):
        halves["train.reward.batch_tokens"] = train.reward.batch_tokens
        halves["train.reward.pairs"] = reward_pairs(config)
    changes += [(setting, value // 2) for setting, value in halves.items() if value > 1]
    ppo, group = train.ppo, train.group
    if train.algorithm == "ppo":
        if ppo.batch > 1 and ppo.batch // 2 % ppo.minibatches == 0:
            changes.append(("train.ppo.batch", ppo.batch // 2))
        if ppo.batch % (2 * ppo.minibatches) == 0:
            changes.append(("train.ppo.minibatches", 2 * ppo.minibatches))
    elif train.algorithm in ("grpo", "rloo"):
        fewer = group.prompts // 2
        if fewer and fewer * group.group % group.minibatches == 0:
            changes.append(("train.group.prompts", fewer))
    return changes


def reward_pairs(config: Config) -> int:
    """Return how many pairs the reward model learns from, at most: some of them are held out."""
    if config.train.reward.pairs is not None:
        return config.train.reward.pairs
    files = [file for name in config.data.pairs if (file := Path(name)).is_file()]
    if config.data.seed_records:
        shipped = seed_files(registers=config.data.registers)
        files += [file for file in shipped if file.name == "pairs.jsonl"]
    lines = (line for file in files for line in file.read_text(encoding="utf-8").split("\n"))
    return sum(bool(line.strip()) for line in lines)


def _changed(config: Config, setting: str, value: Any) -> Config:
    raw = config.model_dump(mode="json")
    *parents, last = setting.split(".")
    node = raw
    for name in parents:
        node = node[name]
    node[last] = value
    return parse_config(raw, where=setting)
