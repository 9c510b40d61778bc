"""`model`: how the base is loaded and what is attached to it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from aegis.config.settings import Positive, Range, Settings


class LoraSettings(Settings):
    """Low-rank adapters (PEFT) on the layers whose depth lies in `layers`."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Rank of each adapter; higher learns more and takes more memory."""
    alpha: Positive = 32.0
    """Scale of the adapters, in units of the rank; higher makes each step count more."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapters' inputs dropped in training; higher regularises more."""
    targets: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "all-linear"
    """Names of the linear layers that get an adapter, or all-linear."""
    layers: Range = (0.25, 1.0)
    """Depths with adapters, as shares of the model; what lies below is computed once for all."""


class GateSettings(Settings):
    """SO(8) gates on the inputs of `lm_head` and of `o_proj`."""

    mode: Literal["geodesic", "additive"] = "geodesic"
    """geodesic: exp(g·A), a rotation at every opening g; additive: I + g·exp(A)."""
    lm_head: Literal["auto"] | bool = "auto"
    """Whether `lm_head` has a gate on its input; auto: where the base allows it."""
    layers: Range = (0.25, 0.75)
    """Depths whose `o_proj` has a gate, as shares of the model; a wider range costs more time."""
    also: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Patterns of further linear layers' names whose input gets a gate."""
    learn_alpha: bool = False
    """Whether α is trained instead of following `train.anneal`."""


class ModelSettings(Settings):
    """How the base is loaded and what is attached to it."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the base's weights; 16 bits halve the memory and round."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Hold the base's linear layers in 4 bits (nf4) or 8 (int8), by bitsandbytes."""
    gradient_checkpointing: bool = False
    """Keep only what enters each layer and compute the rest twice: less memory, more time."""
    offload: bool = False
    """Keep in main memory the layers that find no room on the GPU; every pass takes longer."""
    trust_remote_code: bool = False
    """Whether code that comes with the base may run. Only for bases that you have read."""
    system_prompt: str | None = None
    """System message before every prompt; each of its tokens is read with every prompt."""
    lexical: bool = True
    """Whether n-grams of the prompt decide beside the head, as much as validation shows helps."""
    head: Literal["pooled", "token"] = "pooled"
    """Where the decision comes from: pooled, a head beside the model; token, four tokens of the
    model itself, so that any runtime reads it as the next token's probabilities. The default is the
    one that was measured more."""
    pooling: Literal["last", "mean", "last+mean"] = "last"
    """Which hidden states the decision head reads: the last token's, their mean, or both."""
    lora: LoraSettings = LoraSettings()
    """The policy's low-rank adapters."""
    gates: GateSettings = GateSettings()
    """The SO(8) gates."""

    @model_validator(mode="after")
    def _readable(self) -> ModelSettings:
        if self.head == "token" and self.pooling != "last":
            raise ValueError(
                "head token reads the last position: pooling must be last, "
                f"got {self.pooling}; set it to last, or head to pooled"
            )
        return self

    @model_validator(mode="after")
    def _offloadable(self) -> ModelSettings:
        if self.offload and not self.gradient_checkpointing:
            raise ValueError(
                "offload needs gradient_checkpointing: true, "
                "or all layers would stay until the backward pass"
            )
        if self.offload and self.quantization == "int8":
            raise ValueError("offload works with quantization none or nf4, got int8")
        return self
