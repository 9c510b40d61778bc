"""Each step of a training, rehearsed at the longest rows that the settings allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from aegis.config import Config
from aegis.engine.response_sampler import Limits
from aegis.errors import ModelError
from aegis.model.adapted import Adapted
from aegis.model.base import context_length
from aegis.model.offload import SHARE, waiting_layers
from aegis.protocol.thinking import TAGS
from aegis.train.memory import objectives
from aegis.train.memory.plan import Device, StepPlan, reward_pairs
from aegis.train.memory.stand_ins import Roles, frozen_bytes, is_tied, meta_adapted

# A process that has imported everything; and on a GPU, the context of CUDA with its libraries.
_PROCESS, _CONTEXT = 450 * 2**20, 600 * 2**20
# Share of what comes and goes that an allocator holds beyond what is in use. On the CPU: the
# quickstart's SFT had 4.9 GiB resident where its tensors come to 2.5, and its PPO 5.5 where they
# come to 3.5 (glibc, batches of many shapes).
_FRAGMENTS = {"cuda": 0.1, "cpu": 1.0}


def plan_steps(
    config: Config, *, own: Any, spec: str, device: Device, known: dict[Any, Any]
) -> tuple[StepPlan, ...]:
    """Plan every step of a config's training, in order.

    Args:
        own: the base's config.
        known: models and peaks by what they depend on, shared by all configs of a plan.

    Raises:
        ModelError: if the base's code looks at numbers that are not there.
    """
    planner = _Planner(config, own, spec, device, known)
    algorithm = config.train.algorithm
    try:
        steps = [planner.supervised()]
        if algorithm == "dpo":
            steps.append(planner.preference())
        elif algorithm != "sft":
            steps += [planner.reward(), *planner.policy()]
        return tuple(steps)
    except (NotImplementedError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            f"base {spec!r}: no plan can be made for model_type {own.model_type!r}, whose code "
            f"looks at values ({first}); train with small batches first and watch the memory"
        ) from error


@dataclass(frozen=True)
class _Planner:
    """One config's steps; the arguments of `plan_steps`."""

    config: Config
    own: Any
    spec: str
    device: Device
    known: dict[Any, Any]

    def supervised(self) -> StepPlan:
        train = self.config.train
        dtype = getattr(torch, self.config.model.dtype)
        automatic = train.autocast == "auto" and self.device.bfloat16
        bfloat16 = train.autocast == "bfloat16" or automatic
        adapted = self._adapted(Roles(training="sft"), dtype)
        rows, length = self._rows(train.batch_tokens)
        peak = self._known(
            ("sft", id(adapted), rows, length, train.loss.model_dump_json(), bfloat16),
            lambda: objectives.sft_peak(adapted, train, rows, length, bfloat16=bfloat16),
        )
        return self._step("sft", adapted, dtype, peak)

    def reward(self) -> StepPlan:
        settings = self.config.train.reward
        adapted = self._adapted(Roles(training="reward", reward=settings.lora), self._fast)
        rows, length = self._rows(settings.batch_tokens, at_least=2)
        peak = self._known(
            ("reward", id(adapted), rows, length),
            lambda: objectives.reward_peak(adapted, settings, rows, length),
        )
        pairs = reward_pairs(self.config)
        kept = pairs * 2 * self._limit * adapted.head.features * self._fast.itemsize
        return self._step("reward", adapted, self._fast, peak, {f"trunks of {pairs} pairs": kept})

    def preference(self) -> StepPlan:
        settings = self.config.train.dpo
        adapted = self._adapted(Roles(training="dpo"), self._fast)
        rows, length = self._rows(settings.batch_tokens, at_least=2)
        peak = self._known(
            ("dpo", id(adapted), rows, length),
            lambda: objectives.dpo_peak(adapted, settings, rows, length),
        )
        return self._step("dpo", adapted, self._fast, peak)

    def policy(self) -> list[StepPlan]:
        train, dtype = self.config.train, self._fast
        settings = train.ppo if train.algorithm == "ppo" else train.group
        length = self._limit + Limits(settings.section_tokens, settings.final_tokens).total
        adapted = self._adapted(Roles(training=train.algorithm, reward=train.reward.lora), dtype)
        sampling, update = self._known(
            (train.algorithm, id(adapted), self._limit, settings.model_dump_json()),
            lambda: objectives.policy_peaks(adapted, train, prompt=self._limit, length=length),
        )
        cache = _cache_bytes(self.own, rows=settings.batch, length=length, dtype=dtype)
        name = train.algorithm
        return [
            self._step(f"{name}, sampling", adapted, dtype, sampling, {"key-value cache": cache}),
            self._step(f"{name}, update", adapted, dtype, update),
        ]

    @property
    def _limit(self) -> int:
        """The longest row of an example."""
        return min(self.config.train.max_length, context_length(self.own))

    @property
    def _fast(self) -> torch.dtype:
        """In which reward model and policy hold the base: as `fast_dtype` on the device."""
        return torch.bfloat16 if self.device.bfloat16 else torch.float32

    def _rows(self, tokens: int, *, at_least: int = 1) -> tuple[int, int]:
        """Return rows and length of the longest padded batch; a longer row goes alone."""
        tokens = max(tokens, at_least * self._limit)
        rows = max(at_least, math.ceil(tokens / self._limit))
        return rows, tokens // rows

    def _adapted(self, roles: Roles, dtype: torch.dtype) -> Adapted:
        model = self.config.model
        return self._known(
            (model.model_dump_json(), dtype, roles),
            lambda: meta_adapted(
                self.own,
                model,
                roles,
                spec=self.spec,
                dtype=dtype,
                fused=self.device.kind == "cuda",  # as `quick_attention`
            ),
        )

    def _known(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def _step(
        self,
        name: str,
        adapted: Adapted,
        dtype: torch.dtype,
        peak: int,
        extra: Mapping[str, int] | None = None,
    ) -> StepPlan:
        """Return everything that is there at the peak of a step.

        Args:
            peak: bytes that come and go within it, gradients included.
        """
        model, kind, extra = self.config.model, self.device.kind, extra or {}
        tags = 4 * len(TAGS) * adapted.head.features * (1 if is_tied(adapted) else 2)
        lora = other = trainable = 0
        for key, parameter in adapted.named_parameters():
            size = parameter.numel() * parameter.element_size()
            trainable += size * parameter.requires_grad
            if ".lora_" in key:
                lora += size
            elif not key.startswith("peft."):
                other += size
        trainable += tags
        # Within the optimizer's step the activations are gone; on a GPU it holds one more number
        # for each that trains.
        inside = max(peak - trainable, trainable if kind == "cuda" else 0)
        moving = inside + sum(extra.values())
        around = (_CONTEXT if kind == "cuda" else _PROCESS) + int(_FRAGMENTS[kind] * moving)
        held = model.quantization if model.quantization != "none" else str(dtype).split(".")[-1]
        parts = {
            f"base weights ({held})": self._base_weights(adapted, dtype),
            "LoRA": lora,
            "gates, heads, tags": other + tags,
            "gradients": trainable,
            "optimizer moments": 2 * trainable,
            "activations": inside,
            **extra,
            "process and fragments": around,
        }
        return StepPlan(name, parts)

    def _base_weights(self, adapted: Adapted, dtype: torch.dtype) -> int:
        """Return the bytes of the base's weights that lie on the device."""
        whole, among = frozen_bytes(adapted, self.config.model, dtype)
        if self.config.model.offload:
            sizes = [among // adapted.depth] * adapted.depth
            room = int(SHARE * self.device.memory)
            if waiting := waiting_layers(sizes, room=room, around=whole - among):
                whole -= (waiting - 1) * sizes[0]
        return whole


def _cache_bytes(own: Any, *, rows: int, length: int, dtype: torch.dtype) -> int:
    """Count keys and values of every layer, and of one layer twice: it grows by being copied."""
    text = own.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return (text.num_hidden_layers + 1) * 2 * heads * width * rows * length * dtype.itemsize
