"""Every setting, typed and frozen: YAML plus `--set a.b=c`. An unknown key names the nearest known
one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from aegis.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


def _ordered(shares: tuple[float, float]) -> tuple[float, float]:
    if shares[0] > shares[1]:
        raise ValueError("the first share must not be larger than the second")
    return shares


Range = Annotated[tuple[Share, Share], Field(strict=False), AfterValidator(_ordered)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class GenerateSettings(_Settings):
    """Stage 1: new quadruple-thinking samples from the local model."""

    samples: Count = 12
    topics: str | None = None
    max_new_tokens: AtLeastOne = 48
    batch_size: AtLeastOne = 12
    temperature: Positive = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9


class QualitySettings(_Settings):
    """Stage 2: what a record must be like to stay."""

    min_characters: Count = 2
    max_characters: AtLeastOne = 4000
    max_repetition: Share = 0.5
    near_duplicate: Share = 0.8
    balance_ratio: Annotated[float, Field(ge=1)] = 1.5

    @model_validator(mode="after")
    def _some_length(self) -> QualitySettings:
        if self.min_characters > self.max_characters:
            raise ValueError(
                f"min_characters must be at most max_characters, got {self.min_characters}"
            )
        return self


class SplitSettings(_Settings):
    """Shares held out; contrast twins always stay on one side."""

    validation: Annotated[float, Field(gt=0, lt=1)] = 0.08
    test: Annotated[float, Field(gt=0, lt=1)] = 0.12

    @model_validator(mode="after")
    def _leave_something(self) -> SplitSettings:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation + test must leave something to train on, got {self.validation + self.test}"
            )
        return self


class DataSettings(_Settings):
    """Where records come from and how they are cleaned."""

    seed_records: bool = True
    records: Annotated[tuple[str, ...], Field(strict=False)] = ()
    pairs: Annotated[tuple[str, ...], Field(strict=False)] = ()
    skip_bad: bool = False
    generate: GenerateSettings = GenerateSettings()
    quality: QualitySettings = QualitySettings()
    split: SplitSettings = SplitSettings()

    @model_validator(mode="after")
    def _some_source(self) -> DataSettings:
        if not self.seed_records and not self.records:
            raise ValueError(
                "needs a source of records: set seed_records: true or name files under records"
            )
        return self


class LoraSettings(_Settings):
    """Low-rank adapters (PEFT) on the layers whose depth lies in `layers`, as shares of the
    whole."""

    rank: AtLeastOne = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "all-linear"
    layers: Range = (0.25, 1.0)


class GateSettings(_Settings):
    """SO(8) gates on the input of `lm_head` and of `o_proj` in the layers whose depth lies in
    `layers`."""

    mode: Literal["geodesic", "additive"] = "geodesic"
    lm_head: Literal["auto"] | bool = "auto"
    layers: Range = (0.25, 0.75)
    also: Annotated[tuple[str, ...], Field(strict=False)] = ()
    learn_alpha: bool = False


class ModelSettings(_Settings):
    """How the base is loaded and what is attached to it.

    `quantization`: hold the base's linear layers in 4 bits (nf4) or 8 (int8), by bitsandbytes.
    `gradient_checkpointing`: keep only what enters each layer and compute the rest again in the
    backward pass. `offload`: layers that find no room on the GPU stay in main memory.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["none", "nf4", "int8"] = "none"
    gradient_checkpointing: bool = False
    offload: bool = False
    trust_remote_code: bool = False
    system_prompt: str | None = None
    lexical: bool = True
    pooling: Literal["last", "mean", "last+mean"] = "last"
    lora: LoraSettings = LoraSettings()
    gates: GateSettings = GateSettings()

    @model_validator(mode="after")
    def _offloadable(self) -> ModelSettings:
        if self.offload and not self.gradient_checkpointing:
            raise ValueError(
                "offload needs gradient_checkpointing: true, or all layers would stay until the backward pass"
            )
        if self.offload and self.quantization == "int8":
            raise ValueError("offload works with quantization none or nf4, got int8")
        return self


class AnnealSettings(_Settings):
    """α from `start` to `end`; steps as shares of the whole training."""

    shape: Literal["sigmoid", "linear", "cosine"] = "sigmoid"
    start: Annotated[float, Field(allow_inf_nan=False)] = -5.0
    end: Annotated[float, Field(allow_inf_nan=False)] = 1.618033988749895
    warmup: Share = 0.1
    annealing: Share = 0.7
    steepness: Positive = 12.0

    @model_validator(mode="after")
    def _end_inside(self) -> AnnealSettings:
        if self.warmup + self.annealing > 1:
            raise ValueError(
                f"warmup + annealing must be at most 1, got {self.warmup + self.annealing:g}"
            )
        return self


class LossSettings(_Settings):
    """Weights of the loss terms; `pet` has one λ a phase."""

    decision: Weight = 1.0
    sections: Weight = 0.5
    final: Weight = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    pet: Annotated[tuple[Weight, Weight, Weight], Field(strict=False)] = (0.0, 0.0, 0.0)
    nu_orth: Weight = 0.0
    mu_norm: Weight = 0.0
    rho_iso: Weight = 0.0


class RewardSettings(_Settings):
    """The reward model: LoRA and a scalar head on top of the supervised model, trained on pairs.

    `margin`: how much further apart two sides must be a step of severity between their decisions.
    `pairs`: at most so many, chosen by seed; null for all.
    """

    epochs: Positive = 2.0
    batch_tokens: AtLeastOne = 1536
    pairs: AtLeastOne | None = None
    margin: Weight = 0.25
    lr: Positive = 5e-4
    head_lr: Positive = 1e-3
    lora: LoraSettings = LoraSettings(rank=8, alpha=16.0, layers=(0.75, 1.0))


class RewardWeights(_Settings):
    """What each term of a policy's reward counts. `answered`: the penalty for answering what must
    be declined."""

    reward_model: Weight = 0.5
    decision: Weight = 1.0
    answered: Weight = 1.0
    format: Weight = 1.0
    verification: Weight = 1.0


class PpoSettings(_Settings):
    """PPO on quadruple thinking.

    `batch`: responses an update; `minibatches` times `epochs` optimizer steps are taken on them.
    `responses`: how many of them answer the same prompt; from two on, each one's reward counts less
    the mean of the others' (leave-one-out). `kl`: coefficient of the per-token KL to `reference`;
    with `kl_target` it adapts. `stop_kl`: an update ends early beyond this. `decision`: weight of
    the KL that keeps the decisions where the supervised model left them. `warmup`: share of the
    optimizer steps over which the learning rates rise to theirs; Adam's first steps are as long as
    its later ones, with nothing averaged yet. `decay`: share at the end over which they fall
    towards 0, so that the last batch does not have the last word. `prompt_tokens`: longer prompts
    are not asked.
    """

    updates: AtLeastOne = 12
    batch: AtLeastOne = 24
    responses: AtLeastOne = 1
    minibatches: AtLeastOne = 2
    epochs: AtLeastOne = 1
    lr: Positive = 1e-4
    gate_lr: Positive = 3e-4
    value_lr: Positive = 3e-3
    warmup: Share = 0.0
    decay: Share = 0.0
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    lam: Share = 0.95
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    value_clip: Positive = 0.5
    value: Weight = 0.5
    entropy: Weight = 0.0
    decision: Weight = 5.0
    kl: Weight = 0.05
    kl_estimator: Literal["k1", "k3"] = "k1"
    kl_target: Positive | None = None
    stop_kl: Positive | None = 0.1
    reference: Literal["sft", "base"] = "sft"
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    temperature: Positive = 1.0
    prompt_tokens: AtLeastOne = 192
    section_tokens: AtLeastOne = 24
    final_tokens: AtLeastOne = 48
    weights: RewardWeights = RewardWeights()

    @model_validator(mode="after")
    def _even(self) -> PpoSettings:
        for name, size in (("minibatches", self.minibatches), ("responses", self.responses)):
            if self.batch % size:
                raise ValueError(f"batch must be a multiple of {name}, got {self.batch} and {size}")
        return self


class DpoSettings(_Settings):
    """DPO on the pairs, by TRL's trainer.

    `label_smoothing`: share of pairs taken to be the wrong way round (TRL's "robust" loss).
    `decision`: weight of the decision loss that keeps the decisions right. `pairs`: at most so
    many, chosen by seed; null for all.
    """

    beta: Positive = 0.1
    epochs: Positive = 1.0
    batch_tokens: AtLeastOne = 1536
    pairs: AtLeastOne | None = None
    lr: Positive = 1e-4
    gate_lr: Positive = 3e-4
    warmup: Share = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    decision: Weight = 0.5


class GroupSettings(_Settings):
    """GRPO and RLOO, by TRL's trainers, on quadruple thinking.

    `prompts`: asked in an update, each `group` times; what counts is how a response compares with
    its own group. `minibatches`: the update's gradient is summed over so many parts, for memory.
    `beta`: coefficient of the KL to the supervised model. `decision`: weight of the KL that keeps
    the decisions where the supervised model left them.
    """

    updates: AtLeastOne = 12
    prompts: AtLeastOne = 6
    group: Annotated[int, Field(ge=2)] = 4
    minibatches: AtLeastOne = 2
    lr: Positive = 1e-4
    gate_lr: Positive = 3e-4
    beta: Weight = 0.05
    decision: Weight = 2.0
    temperature: Positive = 1.0
    section_tokens: AtLeastOne = 24
    final_tokens: AtLeastOne = 48
    weights: RewardWeights = RewardWeights()

    @model_validator(mode="after")
    def _even(self) -> GroupSettings:
        if self.batch % self.minibatches:
            raise ValueError(
                f"prompts x group must be a multiple of minibatches, got {self.batch} and {self.minibatches}"
            )
        return self

    @property
    def batch(self) -> int:
        """Responses an update."""
        return self.prompts * self.group


OWN_RECORDS = "records"


class DatasetSettings(_Settings):
    """One dataset of SFT: a JSON Lines file of records, or `records` for the run's own.

    `weight`: an epoch takes round(weight · n) of its n training records; over 1 repeats some.
    """

    path: Annotated[str, Field(min_length=1)]
    weight: Weight = 1.0


class TrainSettings(_Settings):
    """Stage 3.

    `algorithm`: what follows the supervised part; `sft` for nothing.

    `datasets`: what SFT mixes with the run's own records, which have weight 1 unless `path:
    records` gives another. `thinking_records`: how many records of each dataset keep their
    thinking, the rest teach the decision only; null for all. `thinking_tokens`: records whose
    response is longer teach the decision only; null for no limit but `max_length`. A base whose
    tokenizer spells a language in bytes learns little from long rows of them. `probe_records`: how
    many prompts the decision head starts from; 0 for a head that starts at zero.
    `lexical_strength`: inverse regularisation of the lexical head.
    """

    algorithm: Literal["ppo", "dpo", "grpo", "rloo", "sft"] = "ppo"
    epochs: Positive = 2.0
    batch_tokens: AtLeastOne = 1024
    max_length: AtLeastOne = 512
    datasets: Annotated[tuple[DatasetSettings, ...], Field(strict=False)] = ()
    thinking_records: Count | None = None
    thinking_tokens: AtLeastOne | None = None
    probe_records: Count = 700
    lexical_strength: Positive = 10.0
    lr: Positive = 3e-4
    gate_lr: Positive = 3e-3
    head_lr: Positive = 1e-3
    tag_lr: Positive = 3e-3
    weight_decay: Weight = 0.01
    warmup: Share = 0.06
    clip_norm: Positive = 1.0
    autocast: Literal["auto", "off", "bfloat16"] = "auto"
    anneal: AnnealSettings = AnnealSettings()
    loss: LossSettings = LossSettings()
    reward: RewardSettings = RewardSettings()
    ppo: PpoSettings = PpoSettings()
    dpo: DpoSettings = DpoSettings()
    group: GroupSettings = GroupSettings()

    @model_validator(mode="after")
    def _some_dataset(self) -> TrainSettings:
        paths = [dataset.path for dataset in self.datasets]
        if repeated := [path for path in paths if paths.count(path) > 1]:
            raise ValueError(f"datasets names {repeated[0]!r} more than once; give it one weight")
        weights = {OWN_RECORDS: 1.0} | {dataset.path: dataset.weight for dataset in self.datasets}
        if not any(weights.values()):
            raise ValueError("datasets must give at least one of them a weight above 0")
        return self


class ExportSettings(_Settings):
    """Stage 4: the folded model and the limits its certificate must keep."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_logit_difference: Positive | None = None
    min_top1_agreement: Share = 0.99


class EvaluateSettings(_Settings):
    """Stage 4: judging the held-out split."""

    batch_tokens: AtLeastOne = 2048
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95


class DurableSettings(_Settings):
    """How often a run saves itself, how many snapshots stay, and when it warns. Changing these
    never starts a run anew.

    `interval_s`: seconds of work that a power cut can cost at most. `silence_s`: no sign of life
    for longer counts as hung.
    """

    interval_s: Positive = 180.0
    keep_training: AtLeastOne = 5
    silence_s: Positive = 300.0
    gpu_temperature_c: Positive = 75.0
    memory_percent: Positive = 95.0
    cpu_percent: Positive = 90.0


class Config(_Settings):
    """The whole of a run. `base`: a Hugging Face folder, a hub id, a GGUF file, or `embedded`.

    `tracking`: where curves go besides TensorBoard's files, which are always written. Changing it
    never starts a run anew.
    """

    base: Annotated[str, Field(min_length=1)] = "embedded"
    runs: Annotated[str, Field(min_length=1)] = "runs"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    threads: Count = 0
    tracking: Annotated[
        tuple[Literal["tensorboard", "mlflow", "trackio"], ...], Field(strict=False)
    ] = ("tensorboard",)
    durable: DurableSettings = DurableSettings()
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    export: ExportSettings = ExportSettings()
    evaluate: EvaluateSettings = EvaluateSettings()


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file and apply `a.b=c` overrides.

    Raises:
        ConfigError: if the file cannot be read, or a key is unknown, of the wrong type or
            impossible.
    """
    try:
        raw = _read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give an existing YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not valid YAML ({' '.join(str(error).split())}); correct the file"
        ) from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: the file must hold keys and values, got {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    return parse_config(raw, where=str(path))


def parse_config(raw: dict[str, Any], *, where: str) -> Config:
    """Check the settings; the error names the field, the rule, the value found and the remedy."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(problem) for problem in error.errors())
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text; people mean the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _override(raw: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {override!r}: must look like train.lr=1e-4")
    try:
        value = _read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML; quote it") from error
    *parents, last = key.split(".")
    node = raw
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {name} is a value, not a group of settings")
    node[last] = value


def _explain(problem: Any) -> str:
    place = [part for part in problem["loc"] if not (isinstance(part, str) and part in _BRANCHES)]
    field = ".".join(str(part) for part in place) or "the settings"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{field} is not a setting; {remedy}"
    found = problem.get("input")
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message[0].lower() + message[1:]
    shown = "" if isinstance(found, dict | BaseModel) else f", got {found!r}"
    return f"{field}: {message}{shown}; correct this value"


_BRANCHES = frozenset({"bool", "str", "literal['auto']", "int", "float", "none", "constrained-str"})


def _known_keys(place: list[Any]) -> list[str]:
    model: Any = Config
    for part in place:
        model = get_args(model)[0] if isinstance(part, int) else model.model_fields[part].annotation
    return list(model.model_fields)
