"""The arithmetic of PPO: KL estimates, advantages, whitening, clipped losses.

Every tensor is (batch, steps) unless said otherwise; `mask` is 1.0 where a step is real. What
stands where the mask is 0 never reaches a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k3"]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over real steps, a scalar."""
    return torch.where(mask.bool(), values, 0.0).sum() / mask.sum().clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, *, keep_mean: bool = False) -> Tensor:
    """Return values of variance 1 and mean 0 (or their own) over real steps; 0 elsewhere."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask.bool(), whitened + (mean if keep_mean else 0.0), 0.0)


def kl_estimate(policy: Tensor, reference: Tensor, *, estimator: Estimator) -> Tensor:
    """Estimate KL(policy ‖ reference) per step, from log-probabilities of sampled tokens.

    `k1` is the log-ratio itself, unbiased; `k3` is never negative and has less variance.

    Source:
        Schulman, Approximating KL Divergence, 2020.
    """
    ratio = policy - reference
    return ratio if estimator == "k1" else torch.expm1(-ratio) + ratio


def leave_one_out(rewards: Tensor, *, responses: int) -> Tensor:
    """Subtract from each of (batch,) rewards the mean of the others' to the same prompt.

    The `responses` to a prompt stand together; one alone has no others. Subtracting what does not
    depend on the response leaves the gradient's expectation as it is.

    Source:
        Kool et al., Buy 4 REINFORCE Samples, Get a Baseline for Free!, 2019, eq. 8.
    """
    if responses == 1:
        return rewards
    groups = rewards.view(-1, responses)
    return ((groups - groups.mean(1, keepdim=True)) * responses / (responses - 1)).flatten()


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns; a row ends with its last real step.

    Args:
        values: of each state before its step.

    Source:
        Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation,
        2016, eq. 16.
    """
    values = values * mask
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for step in reversed(range(rewards.shape[1])):
        after = values[:, step + 1] if step + 1 < rewards.shape[1] else torch.zeros_like(following)
        delta = rewards[:, step] + gamma * after - values[:, step]
        following = (delta + gamma * lam * following) * mask[:, step]
        advantages[:, step] = following
    return advantages, advantages + values


@dataclass(frozen=True)
class Clipped:
    """A clipped loss (scalar) and the share of real steps where the clip was active."""

    loss: Tensor
    fraction: Tensor


def policy_loss(
    new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, *, clip: float
) -> Clipped:
    """Compute PPO's pessimistic surrogate, to be minimised.

    Source:
        Schulman et al., Proximal Policy Optimization Algorithms, 2017, eq. 7.
    """
    ratio = torch.exp(torch.where(mask.bool(), new - old, 0.0))
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return Clipped(
        masked_mean(torch.maximum(plain, clipped), mask),
        masked_mean((clipped > plain).float(), mask),
    )


def value_loss(new: Tensor, old: Tensor, returns: Tensor, mask: Tensor, *, clip: float) -> Clipped:
    """Compute half the squared error, the change of a value since the rollout clipped."""
    limited = old + (new - old).clamp(-clip, clip)
    plain, clipped = (new - returns) ** 2, (limited - returns) ** 2
    return Clipped(
        0.5 * masked_mean(torch.maximum(plain, clipped), mask),
        masked_mean((clipped > plain).float(), mask),
    )


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Return 1 − Var(returns − values) / Var(returns), 0 without variance.

    It is 1 for a perfect value head and 0 for a constant one.
    """
    real = mask.bool()
    spread = returns[real].var(unbiased=False)
    return float(1 - (returns - values)[real].var(unbiased=False) / spread) if spread > 0 else 0.0


class AdaptiveKL:
    """A KL coefficient that steers the KL per sequence towards a target; constant without one.

    Source:
        Ziegler et al., Fine-Tuning Language Models from Human Preferences, 2019, §2.2.
    """

    def __init__(self, coefficient: float, *, target: float | None, horizon: int = 200) -> None:
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def update(self, kl: float, *, samples: int) -> None:
        """Steer by `kl`, the mean over the last `samples` sequences, in nats."""
        if self.target is not None:
            error = max(-0.2, min(0.2, kl / self.target - 1))
            self.coefficient *= 1 + error * samples / self.horizon
