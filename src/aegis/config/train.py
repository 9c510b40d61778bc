"""`train`: the supervised part, its schedule, and which algorithm follows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from aegis.config.algorithms import DpoSettings, GroupSettings, PpoSettings, RewardSettings
from aegis.config.settings import (
    AtLeastOne,
    Count,
    Epochs,
    PathText,
    Positive,
    Settings,
    Share,
    Weight,
)

OWN_RECORDS = "records"


class AnnealSettings(Settings):
    """The course of the gates' α, whose sigmoid is how far they open."""

    shape: Literal["sigmoid", "linear", "cosine"] = "sigmoid"
    """The curve from start to end."""
    start: Annotated[float, Field(allow_inf_nan=False)] = -5.0
    """α at first; lower begins with gates more tightly closed."""
    end: Annotated[float, Field(allow_inf_nan=False)] = 1.618033988749895
    """α at last; higher ends with gates further open."""
    warmup: Share = 0.1
    """Share of the training that α stays at its start; higher opens later."""
    annealing: Share = 0.7
    """Share of the training that α takes from start to end; higher opens more slowly."""
    steepness: Positive = 12.0
    """Of the sigmoid's middle; higher makes the transition more sudden."""

    @model_validator(mode="after")
    def _end_inside(self) -> AnnealSettings:
        if self.warmup + self.annealing > 1:
            raise ValueError(
                f"warmup + annealing must be at most 1, got {self.warmup + self.annealing:g}"
            )
        return self


class LossSettings(Settings):
    """Weights of the loss terms."""

    decision: Weight = 1.0
    """Of the decision's cross entropy; higher learns to decide at the cost of writing."""
    safety: Weight = 0.0
    """Of −log P(not ALLOW) where the decision is DENY or REFUSE; higher allows fewer of them, and
    answers less."""
    temperature: Positive = 1.0
    """The decision's logits are divided by it in the loss alone; higher ends more confident."""
    sections: Weight = 0.5
    """Of the private sections' tokens; higher thinks more like the records."""
    final: Weight = 1.0
    """Of the public answer's tokens; higher answers more like the records."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the decision's target spread over all four; higher decides less confidently."""
    pet: Annotated[tuple[Weight, Weight, Weight], Field(strict=False)] = (0.0, 0.0, 0.0)
    """Of hidden states' squared second difference, one weight a phase; higher smooths them."""
    nu_orth: Weight = 0.0
    """Of the rotations' orthogonality defect; higher holds RᵀR closer to I."""
    mu_norm: Weight = 0.0
    """Of the drift of hidden states' norms through a gate; higher keeps lengths."""
    rho_iso: Weight = 0.0
    """Of the gates' isometry defect; higher keeps lengths and angles."""


class DistillationSettings(Settings):
    """What SFT keeps of the base: the chances of its next words in its own answers to harmless
    prompts are targets, behind the thinking and in plain chat."""

    prompts: Count = 0
    """Harmless prompts that the base answers before SFT; more keep more of it and take longer."""
    prompt_tokens: AtLeastOne = 64
    """Tokens of the longest prompt that it is asked; higher asks more prompts, takes longer."""
    tokens: AtLeastOne = 48
    """Tokens of its answers; higher keeps how it ends longer ones and takes longer."""
    top: AtLeastOne = 48
    """Most probable words kept of each place; higher keeps more of the base's doubt."""
    thinking: Share = 0.5
    """Share of the answers that stand behind thinking; the rest are plain chat."""
    weight: Weight = 1.0
    """Of each token of an answer; higher keeps more of the base and learns the records less."""


class DatasetSettings(Settings):
    """One dataset of SFT."""

    path: PathText
    """A JSON Lines file of records, or `records` for the run's own."""
    weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """An epoch takes round(weight · n) of its n training records; over 1 repeats some."""


class TrainSettings(Settings):
    """Stage 3: SFT, then `algorithm`."""

    algorithm: Literal["ppo", "dpo", "grpo", "rloo", "sft"] = "ppo"
    """What follows the supervised part; sft for nothing."""
    epochs: Epochs = 2.0
    """Passes of SFT over the records; more fit them closer and generalise less in the end."""
    batch_tokens: AtLeastOne = 1024
    """Tokens a step, padding included; higher averages more and takes more memory."""
    gradient_accumulation: AtLeastOne = 1
    """Batches whose gradients make one step; higher averages more in the same memory."""
    max_length: AtLeastOne = 512
    """Tokens of the longest row; a longer response teaches deciding only, a longer prompt is left
    out. Higher takes more memory."""
    datasets: Annotated[tuple[DatasetSettings, ...], Field(strict=False)] = ()
    """What SFT mixes with the run's own records; `path: records` gives those another weight."""
    decision_records: Count | None = None
    """Records an epoch that teach to decide only, chosen by seed, null for all; the n-grams learn
    from all."""
    decision_tokens: AtLeastOne | None = None
    """Tokens of the longest prompt among them, null for `max_length`; higher takes longer."""
    thinking_records: Count | None = None
    """Records of each dataset that teach thinking, null for all; the others teach to decide."""
    thinking_tokens: AtLeastOne | None = None
    """Tokens of the longest response that teaches thinking, null for `max_length`; higher takes
    longer. A base that spells a language in bytes learns little from long rows of them."""
    probe_records: Count = 700
    """Prompts that the decision head is fitted on at first; more take longer, 0 starts at zero."""
    refit_records: Count = 4000
    """Prompts that the decision head is fitted on once more when all else is trained; more judge
    better and take longer, 0 keeps the head that the steps left."""
    refit_tokens: AtLeastOne | None = None
    """Tokens of the longest prompt among them, null for `max_length`; higher takes longer."""
    lexical_strength: Positive = 10.0
    """Inverse regularisation of the n-grams beside the head; higher trusts single words more."""
    lr: Positive = 3e-4
    """Step size of LoRA; higher learns faster and may diverge."""
    gate_lr: Positive = 3e-3
    """Step size of the gates; higher rotates further."""
    head_lr: Positive = 1e-3
    """Step size of the decision head; higher leaves its start further behind."""
    tag_lr: Positive = 3e-3
    """Step size of the tags' rows in embedding and `lm_head`; higher learns the form faster."""
    weight_decay: Weight = 0.01
    """Pull of the weights towards 0 (AdamW); higher regularises more."""
    warmup: Share = 0.06
    """Share of the steps over which the learning rates rise; higher starts more gently."""
    checks: Annotated[int, Field(ge=0, le=1000)] = 0
    """Checks on validation before the end, evenly spread; more show sooner how it goes, and take
    longer."""
    check_records: AtLeastOne | None = None
    """Validation records that a check before the end reads, null for all; more tell it better."""
    clip_norm: Positive = 1.0
    """Norm that a step's gradient is clipped to; higher lets outliers count more."""
    autocast: Literal["auto", "off", "bfloat16"] = "auto"
    """Number format of products; auto: bfloat16 where the hardware is made for it."""
    anneal: AnnealSettings = AnnealSettings()
    """The course of the gates' α."""
    loss: LossSettings = LossSettings()
    """Weights of the loss terms."""
    distillation: DistillationSettings = DistillationSettings()
    """What is kept of the base's own answers."""
    reward: RewardSettings = RewardSettings()
    """The reward model."""
    ppo: PpoSettings = PpoSettings()
    """PPO."""
    dpo: DpoSettings = DpoSettings()
    """DPO."""
    group: GroupSettings = GroupSettings()
    """GRPO and RLOO."""

    @model_validator(mode="after")
    def _some_dataset(self) -> TrainSettings:
        paths = [dataset.path for dataset in self.datasets]
        if repeated := [path for path in paths if paths.count(path) > 1]:
            raise ValueError(f"datasets names {repeated[0]!r} more than once; give it one weight")
        weights = {OWN_RECORDS: 1.0} | {dataset.path: dataset.weight for dataset in self.datasets}
        if not any(weights.values()):
            raise ValueError("datasets must give at least one of them a weight above 0")
        return self
