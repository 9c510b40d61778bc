"""What a training needs of the device's memory, before a weight is loaded: whether it fits, and
what to change if not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from aegis.config import Config, LoraSettings, parse_config
from aegis.engine.response_sampler import Limits
from aegis.errors import ConfigError, ModelError
from aegis.model.adapted import Adapted
from aegis.model.base import Base, context_length
from aegis.model.device import bfloat16_is_fast
from aegis.model.offload import SHARE, waiting_layers
from aegis.protocol.thinking import TAGS
from aegis.train.memory import rehearsal
from aegis.train.memory.rehearsal import Shapes

_GIB = 2**30
_SEED_PAIRS = 210  # as many as ship with AEGIS
# A process that has imported everything; and on a GPU, the context of CUDA with its libraries.
_PROCESS, _CONTEXT = 450 * 2**20, 600 * 2**20
# Share of what comes and goes that an allocator holds beyond what is in use. On the CPU: the quickstart's SFT had 4.9 GiB
# resident where its tensors come to 2.5, and its PPO 5.5 where they come to 3.5 (glibc, batches of many shapes).
_FRAGMENTS = {"cuda": 0.1, "cpu": 1.0}


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
        """The first GPU, or this machine's main memory."""
        if torch.cuda.is_available():
            name = torch.cuda.get_device_name()
            return cls(name, "cuda", torch.cuda.mem_get_info()[0], bfloat16_is_fast())
        import psutil

        return cls("main memory", "cpu", psutil.virtual_memory().available, bfloat16_is_fast())


@dataclass(frozen=True)
class StepPlan:
    """Bytes of one step at its peak, by what takes them; only one step is in memory at a time."""

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
        shown = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"set {self.setting}: {shown} (saves {self.saves / _GIB:.1f} GiB{', enough' if self.enough else ''})"


@dataclass(frozen=True)
class Plan:
    """What will be needed, and what there is.

    Args:
        steps: every step of the training.
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
        return {
            "base": self.base,
            "device": {
                "name": self.device.name,
                "kind": self.device.kind,
                "bytes": self.device.memory,
            },
            "fits": self.fits,
            "peak_bytes": self.worst.total,
            "steps": [
                {"step": step.name, "bytes": step.total, "parts": step.parts} for step in self.steps
            ],
            "remedies": [vars(remedy) for remedy in self.remedies],
            "together": [remedy.setting for remedy in self.together],
        }

    def rows(self) -> list[tuple[str, str]]:
        """(part, memory) for a table: every step, and under it what takes its memory."""
        found = []
        for step in self.steps:
            found.append((step.name, f"{step.total / _GIB:.2f} GiB"))
            found += [
                (f"  {part}", f"{size / _GIB:.2f}") for part, size in step.parts.items() if size
            ]
        return [*found, (f"free on {self.device.name}", f"{self.device.memory / _GIB:.2f} GiB")]

    def advice(self) -> list[str]:
        """Lines that say whether it fits, and what to change."""
        need = f"{self.worst.name} needs {self.worst.total / _GIB:.1f} of {self.device.memory / _GIB:.1f} GiB"
        if self.fits:
            return [f"fits {self.device.name}: {need}"]
        lines = [f"does not fit {self.device.name}: {need}", *map(str, self.remedies)]
        if self.together:
            return [
                *lines,
                "together enough: " + ", ".join(f"{r.setting}: {r.value}" for r in self.together),
            ]
        if not any(remedy.enough for remedy in self.remedies):
            lines.append(
                "all of them together are not enough; take a smaller base or a larger device"
            )
        return lines


def plan(config: Config, base: Base, *, device: Device | None = None) -> Plan:
    """Estimate every step of the training from the base's config.json; no weight is read.

    Activations are not estimated by a formula: the step itself is run on tensors without content
    (`rehearsal`), at the longest rows that the settings allow.

    Raises:
        ModelError: if the base is no causal language model, or its code looks at numbers that are
            not there.
    """
    device = device or Device.here()
    own = base.read_config()
    seen: dict[Any, Any] = {}

    def steps_of(config: Config) -> tuple[StepPlan, ...]:
        return _steps(config, own, base.spec, device, seen)

    steps = steps_of(config)
    found = Plan(base.spec, device, steps)
    if found.fits:
        return found
    remedies = []
    for setting, value in _candidates(config, device):
        changed = steps_of(_changed(config, setting, value))
        saves = max(
            before.total - after.total
            for before, after in zip(steps, changed, strict=True)
            if before.total > device.memory
        )
        if saves > 0:
            remedies.append(
                Remedy(setting, value, saves, all(step.total <= device.memory for step in changed))
            )
    remedies.sort(key=lambda remedy: -remedy.saves)
    together = (
        []
        if any(remedy.enough for remedy in remedies)
        else _together(config, remedies, steps_of, device)
    )
    return Plan(base.spec, device, steps, tuple(remedies), tuple(together))


def _together(
    config: Config,
    remedies: list[Remedy],
    steps_of: Callable[[Config], tuple[StepPlan, ...]],
    device: Device,
) -> list[Remedy]:
    taken: list[Remedy] = []
    for remedy in remedies:
        try:
            config = _changed(config, remedy.setting, remedy.value)
        except ConfigError:  # it contradicts one that is taken, as half the batch may contradict twice the minibatches
            continue
        taken.append(remedy)
        if all(step.total <= device.memory for step in steps_of(config)):
            return taken
    return []


def _candidates(config: Config, device: Device) -> list[tuple[str, Any]]:
    """What could be changed, each by one notch."""
    model, train = config.model, config.train
    found: list[tuple[str, Any]] = []
    if model.quantization != "nf4":
        found.append(("model.quantization", "nf4"))
    if model.dtype == "float32" and device.bfloat16:
        found.append(("model.dtype", "bfloat16"))
    if not model.gradient_checkpointing:
        found.append(("model.gradient_checkpointing", True))
    elif device.kind == "cuda" and not model.offload and model.quantization != "int8":
        found.append(("model.offload", True))
    halves = {
        "train.batch_tokens": train.batch_tokens,
        "train.max_length": train.max_length,
        "model.lora.rank": model.lora.rank,
    }
    if train.algorithm == "dpo":
        halves["train.dpo.batch_tokens"] = train.dpo.batch_tokens
    if train.algorithm in ("ppo", "grpo", "rloo"):
        halves["train.reward.batch_tokens"] = train.reward.batch_tokens
        halves["train.reward.pairs"] = _pairs(config)
    found += [(setting, value // 2) for setting, value in halves.items() if value > 1]
    ppo, group = train.ppo, train.group
    if train.algorithm == "ppo":
        if ppo.batch > 1 and ppo.batch // 2 % ppo.minibatches == 0:
            found.append(("train.ppo.batch", ppo.batch // 2))
        if ppo.batch % (2 * ppo.minibatches) == 0:
            found.append(("train.ppo.minibatches", 2 * ppo.minibatches))
    fewer = group.prompts // 2
    if (
        train.algorithm in ("grpo", "rloo")
        and fewer
        and fewer * group.group % group.minibatches == 0
    ):
        found.append(("train.group.prompts", fewer))
    return found


def _pairs(config: Config) -> int:
    """How many pairs the reward model learns from, at most: some of them are held out."""
    if config.train.reward.pairs is not None:
        return config.train.reward.pairs
    files = [Path(name) for name in config.data.pairs]
    own = sum(
        line.strip() != ""
        for file in files
        if file.is_file()
        for line in file.open(encoding="utf-8")
    )
    return own + _SEED_PAIRS * config.data.seed_records


def _changed(config: Config, setting: str, value: Any) -> Config:
    raw = config.model_dump(mode="json")
    *parents, last = setting.split(".")
    node = raw
    for name in parents:
        node = node[name]
    node[last] = value
    return parse_config(raw, where=setting)


def _steps(
    config: Config, own: Any, spec: str, device: Device, seen: dict[Any, Any]
) -> tuple[StepPlan, ...]:
    algorithm = config.train.algorithm
    planners: list[Callable[[_Planner], list[StepPlan]]] = [_sft]
    if algorithm in ("ppo", "grpo", "rloo"):
        planners += [_reward, _policy]
    elif algorithm == "dpo":
        planners += [_dpo]
    planner = _Planner(config, own, spec, device, seen)
    try:
        return tuple(step for found in planners for step in found(planner))
    except (NotImplementedError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            f"base {spec!r}: no plan can be made for model_type {own.model_type!r}, whose code looks at values ({first}); "
            "train with small batches first and watch the memory"
        ) from error


@dataclass(frozen=True)
class _Planner:
    """One config's steps.

    Args:
        seen: models and rehearsed steps by what they depend on, shared by all configs of a plan.
    """

    config: Config
    own: Any
    spec: str
    device: Device
    seen: dict[Any, Any]

    @property
    def limit(self) -> int:
        """The longest row of an example."""
        return min(self.config.train.max_length, context_length(self.own))

    @property
    def fast(self) -> torch.dtype:
        """In which reward model and policy hold the base: as `fast_dtype` on the device."""
        return torch.bfloat16 if self.device.bfloat16 else torch.float32

    def actors(
        self, dtype: torch.dtype, *, roles: bool, reward: LoraSettings | None = None
    ) -> Adapted:
        model = self.config.model
        key = (model.model_dump_json(), dtype, roles, reward)
        if key not in self.seen:
            fused = self.device.kind == "cuda"  # as `quick_attention`
            self.seen[key] = rehearsal.actors(
                self.own,
                model,
                spec=self.spec,
                dtype=dtype,
                fused=fused,
                roles=roles,
                reward=reward,
            )
        return self.seen[key]

    def peak(
        self, run: Callable[..., int], adapted: Adapted, shapes: Shapes, **options: Any
    ) -> int:
        key = (run, id(adapted), adapted.training_adapter, shapes, tuple(options.items()))
        if key not in self.seen:
            self.seen[key] = run(adapted, shapes, **options)
        return self.seen[key]

    def rows(self, tokens: int, *, at_least: int = 1) -> Shapes:
        """A batch of at most `tokens` when padded, of as long rows as there can be; a longer row
        goes alone."""
        tokens = max(tokens, at_least * self.limit)
        rows = max(at_least, math.ceil(tokens / self.limit))
        return Shapes(rows, tokens // rows)

    def step(
        self,
        name: str,
        adapted: Adapted,
        dtype: torch.dtype,
        peak: int,
        *,
        extra: dict[str, int] | None = None,
    ) -> StepPlan:
        """Everything that is there at the peak of a step.

        Args:
            peak: bytes that come and go within it, gradients included.
        """
        model = self.config.model
        width = adapted.head.features
        tied = (
            adapted.base.get_output_embeddings().weight
            is adapted.base.get_input_embeddings().weight
        )
        tags = len(TAGS) * width * (1 if tied else 2)
        lora = other = trainable = 0
        for key, parameter in adapted.named_parameters():
            size = parameter.numel() * parameter.element_size()
            trainable += size * parameter.requires_grad
            if ".lora_" in key:
                lora += size
            elif not key.startswith("peft."):
                other += size
        trainable += 4 * tags
        whole, among = rehearsal.frozen_bytes(adapted, model, dtype)
        sizes = [among // adapted.depth] * adapted.depth
        if model.offload:
            room = int(SHARE * self.device.memory)
            if waiting := waiting_layers(sizes, room=room, around=whole - among):
                whole -= (waiting - 1) * sizes[0]
        # Within the optimizer's step the activations are gone; on a GPU it holds one more number for each that trains.
        inside = max(peak - trainable, trainable if self.device.kind == "cuda" else 0)
        parts = {
            f"base weights ({model.quantization if model.quantization != 'none' else str(dtype).split('.')[-1]})": whole,
            "LoRA": lora,
            "gates, heads, tags": other + 4 * tags,
            "gradients": trainable,
            "optimizer moments": 2 * trainable,
            "activations": inside,
            **(extra or {}),
        }
        moving = inside + sum((extra or {}).values())
        kind = self.device.kind
        around = (_CONTEXT if kind == "cuda" else _PROCESS) + int(_FRAGMENTS[kind] * moving)
        return StepPlan(name, {**parts, "process and fragments": around})


def _sft(at: _Planner) -> list[StepPlan]:
    train = at.config.train
    dtype = getattr(torch, at.config.model.dtype)
    bfloat16 = train.autocast == "bfloat16" or (train.autocast == "auto" and at.device.bfloat16)
    adapted = at.actors(dtype, roles=False)
    shapes = at.rows(train.batch_tokens)
    training = at.peak(
        rehearsal.supervised, adapted, shapes, pet=any(train.loss.pet), bfloat16=bfloat16
    )
    validating = at.peak(rehearsal.scored, adapted, Shapes(2 * shapes.rows, shapes.length))
    return [at.step("sft", adapted, dtype, max(training, validating))]


def _reward(at: _Planner) -> list[StepPlan]:
    settings = at.config.train.reward
    adapted = at.actors(at.fast, roles=True, reward=settings.lora)
    adapted.train_only("reward")
    shapes = at.rows(settings.batch_tokens, at_least=2)
    reading = at.peak(rehearsal.scored, adapted, shapes)
    training = at.peak(rehearsal.preferred, adapted, shapes)
    pairs = _pairs(at.config)
    kept = pairs * 2 * at.limit * adapted.head.features * at.fast.itemsize
    return [
        at.step(
            "reward",
            adapted,
            at.fast,
            max(reading, training),
            extra={f"trunks of {pairs} pairs": kept},
        )
    ]


def _dpo(at: _Planner) -> list[StepPlan]:
    adapted = at.actors(at.fast, roles=True)
    adapted.train_only("default")
    shapes = at.rows(at.config.train.dpo.batch_tokens, at_least=2)
    peak = at.peak(
        rehearsal.supervised, adapted, shapes, pet=False, bfloat16=False, tagged=False, chunked=True
    )
    return [at.step("dpo", adapted, at.fast, peak)]


def _policy(at: _Planner) -> list[StepPlan]:
    train = at.config.train
    settings = train.ppo if train.algorithm == "ppo" else train.group
    limits = Limits(section=settings.section_tokens, final=settings.final_tokens)
    adapted = at.actors(at.fast, roles=True, reward=train.reward.lora)
    adapted.train_only("default")
    length = at.limit + limits.total
    whole = Shapes(settings.batch, length, limits.total)
    scoring = at.peak(rehearsal.scored, adapted, whole)
    update = at.peak(rehearsal.optimised, adapted, whole, minibatches=settings.minibatches)
    prompts = at.peak(rehearsal.scored, adapted, Shapes(settings.batch, at.limit))
    cache = _cache_bytes(at.own, rows=settings.batch, length=length, dtype=at.fast)
    name = train.algorithm
    return [
        at.step(f"{name}, sampling", adapted, at.fast, prompts, extra={"key-value cache": cache}),
        at.step(f"{name}, update", adapted, at.fast, max(scoring, update)),
    ]


def _cache_bytes(own: Any, *, rows: int, length: int, dtype: torch.dtype) -> int:
    """Keys and values of every layer, and of one layer twice: it grows by being copied."""
    text = own.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return (text.num_hidden_layers + 1) * 2 * heads * width * rows * length * dtype.itemsize
