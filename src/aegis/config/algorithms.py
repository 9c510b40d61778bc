"""`train.reward`, `train.ppo`, `train.dpo`, `train.group`: what may follow the supervised part."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from aegis.config.model import LoraSettings
from aegis.config.settings import AtLeastOne, Epochs, OpenShare, Positive, Settings, Share, Weight


class RewardSettings(Settings):
    """The reward model: LoRA and a scalar head on the supervised model, trained on pairs."""

    epochs: Epochs = 2.0
    """Passes over the training pairs; more fit them closer and generalise less in the end."""
    batch_tokens: AtLeastOne = 1536
    """Tokens a step, padding included; higher averages more and takes more memory."""
    pairs: AtLeastOne | None = None
    """Pairs at most, chosen by seed; null for all."""
    margin: Weight = 0.25
    """Margin for each step of severity between the decisions; higher separates them further."""
    lr: Positive = 5e-4
    """Step size of LoRA; higher learns faster and may diverge."""
    head_lr: Positive = 1e-3
    """Step size of the scalar head; higher learns faster and may diverge."""
    lora: LoraSettings = LoraSettings(rank=8, alpha=16.0, layers=(0.75, 1.0))
    """The reward model's own low-rank adapters, on top of the policy's."""


class RewardWeights(Settings):
    """What each term of a policy's reward counts."""

    reward_model: Weight = 0.5
    """Of the reward model's normalised score, clipped to ±3; higher follows the pairs more."""
    decision: Weight = 1.0
    """Of ±1, whether the answer does what the record's decision asks for; higher obeys it more."""
    answered: Weight = 1.0
    """Of the penalty for answering what must be declined; higher refuses more."""
    format: Weight = 1.0
    """Of the share of bodies that the model closed itself; higher writes shorter sections."""
    verification: Weight = 1.0
    """Of the share of checks that hold without a label; higher agrees with itself more."""


class RolloutSettings(Settings):
    """What training on sampled responses has in common."""

    updates: AtLeastOne = 12
    """Rounds of sampling and learning; more go further from the supervised model."""
    minibatches: AtLeastOne = 2
    """Parts that one pass over the responses is divided into; more need less memory."""
    lr: Positive = 1e-4
    """Step size of LoRA; higher learns faster and may collapse."""
    gate_lr: Positive = 3e-4
    """Step size of the gates; higher rotates further."""
    temperature: Positive = 1.0
    """Sampling temperature of the responses; higher explores more."""
    section_tokens: AtLeastOne = 24
    """Tokens a private section may have; higher takes longer to sample."""
    final_tokens: AtLeastOne = 48
    """Tokens the public answer may have; higher takes longer to sample."""
    weights: RewardWeights = RewardWeights()
    """What each term of the reward counts."""


class PpoSettings(RolloutSettings):
    """PPO on quadruple thinking; each minibatch is an optimizer step."""

    batch: AtLeastOne = 24
    """Responses an update; more give a steadier gradient and take longer to sample."""
    responses: AtLeastOne = 1
    """How many of them answer one prompt, each paid less the others' mean: a steadier gradient."""
    epochs: AtLeastOne = 1
    """Passes over an update's responses; more learn more from each and go more off-policy."""
    value_lr: Positive = 3e-3
    """Step size of the value head; higher follows the returns faster."""
    warmup: Share = 0.0
    """Share of the steps over which the learning rates rise, while Adam has little to average."""
    decay: Share = 0.0
    """Share of the steps, at the end, over which the learning rates fall towards 0."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount a token; lower forgets the end of a response sooner."""
    lam: Share = 0.95
    """λ of GAE; higher trusts the sampled return more and the value head less."""
    clip: OpenShare = 0.2
    """How far a token's probability ratio may count from 1; higher allows longer steps."""
    value_clip: Positive = 0.5
    """How far a value may move in an update before its loss is clipped; higher moves faster."""
    value: Weight = 0.5
    """Weight of the value loss; higher fits the value head faster."""
    entropy: Weight = 0.0
    """Weight of the entropy bonus; higher keeps sampling varied."""
    decision: Weight = 5.0
    """Weight of the KL to the supervised model's decisions; higher keeps them where they were."""
    kl: Weight = 0.05
    """Coefficient of the per-token KL to `reference`; higher stays closer to it."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """k1: the log ratio, unbiased; k3: ratio − 1 − log ratio, never negative, less variance."""
    kl_target: Positive | None = None
    """KL in nats a response that `kl` adapts to; higher goes further, null keeps `kl` fixed."""
    stop_kl: Positive | None = 0.1
    """Approximate KL in nats a token that ends an update early; higher allows more, null any."""
    reference: Literal["sft", "base"] = "sft"
    """What the KL is taken to: the supervised model or the bare base."""
    whiten_rewards: bool = False
    """Whether rewards get standard deviation 1 over the batch; their mean stays."""
    whiten_advantages: bool = True
    """Whether advantages get mean 0 and deviation 1, body by body."""
    prompt_tokens: AtLeastOne = 192
    """Tokens of the longest prompt that is asked; higher asks more prompts, takes more memory."""

    @model_validator(mode="after")
    def _even(self) -> PpoSettings:
        for name, size in (("minibatches", self.minibatches), ("responses", self.responses)):
            if self.batch % size:
                raise ValueError(f"batch must be a multiple of {name}, got {self.batch} and {size}")
        return self


class DpoSettings(Settings):
    """DPO on the pairs."""

    beta: Positive = 0.1
    """Strength of the KL to the supervised model; higher stays closer to it."""
    epochs: Epochs = 1.0
    """Passes over the training pairs; more fit them closer."""
    batch_tokens: AtLeastOne = 1536
    """Tokens a step, padding included; higher averages more and takes more memory."""
    pairs: AtLeastOne | None = None
    """Pairs at most, chosen by seed; null for all."""
    lr: Positive = 1e-4
    """Step size of LoRA; higher learns faster and may diverge."""
    gate_lr: Positive = 3e-4
    """Step size of the gates; higher rotates further."""
    warmup: Share = 0.1
    """Share of the steps over which the learning rates rise; higher starts more gently."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs taken to be the wrong way round (robust DPO); higher trusts them less."""
    decision: Weight = 0.5
    """Weight of the decision loss beside it; higher keeps the decisions right."""


class GroupSettings(RolloutSettings):
    """GRPO and RLOO on quadruple thinking: a response is compared with its own group.

    The gradient of an update is summed over its minibatches.
    """

    prompts: AtLeastOne = 6
    """Prompts asked in an update; more give a steadier gradient and take longer."""
    group: Annotated[int, Field(ge=2)] = 4
    """Responses to each prompt; more estimate its mean reward better."""
    beta: Weight = 0.05
    """Coefficient of the KL to the supervised model; higher stays closer to it."""
    decision: Weight = 2.0
    """Weight of the KL to the supervised model's decisions; higher keeps them where they were."""

    @model_validator(mode="after")
    def _even(self) -> GroupSettings:
        if self.batch % self.minibatches:
            raise ValueError(
                "prompts x group must be a multiple of minibatches, "
                f"got {self.batch} and {self.minibatches}"
            )
        return self

    @property
    def batch(self) -> int:
        """Responses an update."""
        return self.prompts * self.group
