from __future__ import annotations

import pytest
import torch

from aegis.train.advantages import (
    AdaptiveKL,
    explained_variance,
    generalized_advantages,
    kl_estimate,
    leave_one_out,
    masked_mean,
    masked_whiten,
    policy_loss,
    value_loss,
)

MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
WILD = torch.tensor(
    [[0.0, 0.0, 0.0], [0.0, 0.0, 1e9]]
)  # what stands behind the mask must never matter


def test_advantages_follow_the_recursion_row_by_row() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 3), torch.randn(2, 3)
    advantages, returns = generalized_advantages(
        rewards + WILD, values + WILD, MASK, gamma=0.9, lam=0.8
    )
    for row, length in enumerate((3, 2)):
        for start in range(length):
            expected = 0.0
            for step in range(start, length):
                after = float(values[row, step + 1]) if step + 1 < length else 0.0
                delta = float(rewards[row, step]) + 0.9 * after - float(values[row, step])
                expected += (0.9 * 0.8) ** (step - start) * delta
            assert float(advantages[row, start]) == pytest.approx(expected, abs=1e-5)
            assert float(returns[row, start]) == pytest.approx(
                expected + float(values[row, start]), abs=1e-5
            )
    assert float(advantages[1, 2]) == 0.0


def test_with_gamma_and_lambda_one_returns_are_sums_of_rewards() -> None:
    rewards = torch.tensor([[0.0, 0.0, 5.0], [1.0, 2.0, 0.0]])
    _, returns = generalized_advantages(rewards, torch.randn(2, 3), MASK, gamma=1.0, lam=1.0)
    assert torch.allclose(returns, torch.tensor([[5.0, 5.0, 5.0], [3.0, 2.0, 0.0]]), atol=1e-5)


def test_whitening_ignores_what_is_not_real() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]]) + WILD
    white = masked_whiten(values, MASK)
    assert float(masked_mean(white, MASK)) == pytest.approx(0, abs=1e-6)
    assert float(masked_mean(white**2, MASK)) == pytest.approx(1, abs=1e-5)
    assert float(white[1, 2]) == 0.0
    assert float(masked_mean(masked_whiten(values, MASK, keep_mean=True), MASK)) == pytest.approx(
        3.0, abs=1e-5
    )


def test_a_response_counts_less_the_mean_of_the_others_to_its_prompt() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    torch.testing.assert_close(
        leave_one_out(rewards, responses=3), torch.tensor([-3.0, -1.5, 4.5, 0.0, 0.0, 0.0])
    )
    assert torch.equal(leave_one_out(rewards, responses=1), rewards)


def test_kl_estimators_agree_in_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.log_softmax(torch.randn(8, generator=generator), 0) for _ in range(2))
    exact = float((p.exp() * (p - q)).sum())
    sampled = torch.multinomial(p.exp(), 200_000, replacement=True, generator=generator)
    for estimator in ("k1", "k3"):
        found = kl_estimate(p[sampled], q[sampled], estimator=estimator)  # pyright: ignore[reportArgumentType]
        assert float(found.mean()) == pytest.approx(exact, rel=0.03)
    assert (kl_estimate(p[sampled], q[sampled], estimator="k3") >= 0).all()


def test_the_clip_takes_the_pessimistic_side() -> None:
    old, new = torch.zeros(1, 2), torch.log(torch.tensor([[1.5, 0.5]]))
    ones = torch.ones(1, 2)
    gained = policy_loss(new, old, torch.tensor([[1.0, -1.0]]), ones, clip=0.2)
    assert float(gained.loss) == pytest.approx((-1.2 + 0.8) / 2)
    assert float(gained.fraction) == 1.0
    lost = policy_loss(new, old, torch.tensor([[-1.0, 1.0]]), ones, clip=0.2)
    assert float(lost.loss) == pytest.approx((1.5 - 0.5) / 2)
    assert float(lost.fraction) == 0.0
    far = value_loss(
        torch.tensor([[2.0]]), torch.zeros(1, 1), torch.ones(1, 1) * 2, torch.ones(1, 1), clip=0.5
    )
    assert float(far.loss) == pytest.approx(0.5 * 1.5**2)


def test_explained_variance_is_one_for_a_perfect_guess() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]]) + WILD
    assert explained_variance(returns, returns, MASK) == 1.0
    assert explained_variance(returns, torch.ones_like(returns), MASK) == 0.0
    assert explained_variance(torch.zeros_like(returns), returns, MASK) == pytest.approx(0.0)


def test_the_kl_coefficient_steers_towards_its_target() -> None:
    fixed, steered = AdaptiveKL(0.1, target=None), AdaptiveKL(0.1, target=6.0)
    fixed.update(100.0, samples=32)
    assert fixed.coefficient == 0.1
    steered.update(12.0, samples=50)
    assert steered.coefficient == pytest.approx(0.1 * 1.05)
    steered.update(0.0, samples=50)
    assert steered.coefficient == pytest.approx(0.1 * 1.05 * 0.95)
