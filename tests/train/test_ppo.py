"""PPO on tasks whose best policy is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch

from aegis.config import GateSettings, LoraSettings, ModelSettings, PpoSettings
from aegis.engine.response_sampler import SampledResponse
from aegis.errors import AegisError, StoppedError
from aegis.model.adapted import Adapted, attach
from aegis.model.heads import ScalarHead
from aegis.storage.snapshots import SnapshotStore
from aegis.train.loop import TrainLoop
from aegis.train.policy import drift
from aegis.train.ppo import PpoObjective, whiten_by_part
from aegis.train.reward import RewardModel
from aegis.train.rollout import Limiter, RolloutCollector
from aegis.train.services import LoopSettings, TrainServices
from aegis.train.snapshot_policy import SnapshotPolicy
from tests.conftest import tiny_model

TARGET, CHOICES = 7, tuple(range(4, 12))


class Bandit:
    """Responses of `length` tokens out of eight; the reward is the share of one of them."""

    def __init__(self, adapted: Adapted, *, length: int) -> None:
        self.adapted, self.length = adapted, length
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(20, 90, (32, 3), generator=generator).tolist()
        self.prompts: Sequence[tuple[int, ...]] = [tuple(row) for row in rows]
        self.kinds: Sequence[int] = [0] * len(rows)
        self.decides: bool = False
        allowed = torch.zeros(400, dtype=torch.bool)
        allowed[list(CHOICES)] = True
        self.limiter: Limiter | None = Limiter(allowed, (0,))

    def sample(
        self, prompts: Sequence[tuple[int, ...]], on_token: Callable[[], None] = lambda: None
    ) -> list[SampledResponse]:
        assert self.limiter
        ids = torch.tensor(prompts)
        for _ in range(self.length):
            hidden = self.adapted.hidden(ids, torch.ones_like(ids))[:, -1]
            logits = self.adapted.logits(hidden).masked_fill(~self.limiter.allowed, -torch.inf)
            ids = torch.cat([ids, torch.multinomial(torch.softmax(logits, -1), 1)], dim=1)
            on_token()
        yes, part, no = (True,) * self.length, (0,) * self.length, (False,) * self.length
        return [
            SampledResponse(tuple(row[:3]), tuple(row[3:]), yes, part, no, (True,), ())
            for row in ids.tolist()
        ]

    def terms(
        self, indices: Sequence[int], responses: Sequence[SampledResponse]
    ) -> list[dict[str, float]]:
        return [
            {"share": sum(token == TARGET for token in path.ids) / len(path.ids)}
            for path in responses
        ]

    def shaped_rewards(self, index: int, response: SampledResponse) -> dict[int, float]:
        return {}


def bandit(length: int = 4, *, seed: int = 0, **changes: Any) -> PpoObjective:
    model = ModelSettings(
        lora=LoraSettings(rank=4, layers=(0.5, 1.0)), gates=GateSettings(layers=(0.5, 0.75))
    )
    torch.manual_seed(seed)
    adapted = attach(tiny_model(), model)
    adapted.set_alpha(1.6)
    adapted.add_reference()
    given = {
        "updates": 60,
        "batch": 32,
        "minibatches": 2,
        "lr": 3e-3,
        "gate_lr": 3e-3,
        "value_lr": 1e-2,
        "kl": 0.0,
    }
    settings = PpoSettings(**{**given, "stop_kl": None, **changes})
    collector = RolloutCollector(adapted, Bandit(adapted, length=length), settings, pad_id=1)
    return PpoObjective(collector, ScalarHead(32), settings, LoopSettings(pad_id=1, seed=seed))


def train(ppo: PpoObjective, services: TrainServices | None = None) -> list[dict[str, Any]]:
    """Train to the end; return the log of every update."""
    TrainLoop(ppo, ppo.loop, services or TrainServices()).run()
    return ppo.updates


def shares(logs: list[dict[str, Any]]) -> list[float]:
    return [log["reward/share"] for log in logs]


def test_the_known_optimum_is_reached() -> None:
    logs = train(bandit())
    assert shares(logs)[0] < 0.5
    assert sum(shares(logs)[-5:]) / 5 >= 0.95
    assert logs[0]["ratio"] == pytest.approx(1.0, abs=0.2)
    assert {"entropy", "approx_kl", "clip_fraction", "explained_variance", "tokens", "kl"} <= logs[
        0
    ].keys()
    assert logs[-1]["entropy"] < logs[0]["entropy"]


def test_a_kl_penalty_leads_to_the_tilted_reference() -> None:
    """With one token a response the optimum is p(x) ∝ p_ref(x)·exp(r(x)/β)."""
    beta = 0.5
    ppo = bandit(1, kl=beta, updates=80, batch=64)
    train(ppo)
    prompts = torch.tensor(ppo.collector.task.prompts)

    def chance() -> torch.Tensor:
        hidden = ppo.adapted.hidden(prompts, torch.ones_like(prompts))[:, -1]
        return torch.softmax(ppo.adapted.logits(hidden)[:, list(CHOICES)], -1)[
            :, TARGET - CHOICES[0]
        ]

    with torch.no_grad():
        found = chance()
        with ppo.adapted.acting_as("reference"):
            reference = chance()
    tilted = reference * math.exp(1 / beta)
    expected = tilted / (tilted + 1 - reference)
    assert float(found.mean()) == pytest.approx(float(expected.mean()), abs=0.08)
    assert float(expected.mean()) < 0.9


def test_without_kl_the_policy_goes_further_away() -> None:
    near, far = train(bandit(kl=0.3, updates=30)), train(bandit(kl=0.0, updates=30))
    assert near[-1]["kl"] < far[-1]["kl"]
    assert shares(near)[-1] <= shares(far)[-1] + 0.02


def test_with_lambda_zero_credit_needs_the_value_head_first() -> None:
    def reached(lam: float) -> float:
        return (
            sum(
                sum(shares(train(bandit(8, lam=lam, updates=20, seed=seed)))[-5:]) / 5
                for seed in (0, 1)
            )
            / 2
        )

    assert reached(0.95) > reached(0.0)


def test_whitening_takes_the_rewards_size_out() -> None:
    def first_norm(weight: float, *, white: bool) -> float:
        ppo = bandit(updates=1, minibatches=1, whiten_advantages=white, value=0.0, clip=0.5)
        plain = ppo.collector.task.terms
        ppo.collector.task.terms = lambda indices, paths: [  # pyright: ignore[reportAttributeAccessIssue]
            {name: weight * value for name, value in row.items()} for row in plain(indices, paths)
        ]
        return train(ppo)[0]["gradient_norm"]

    assert first_norm(10.0, white=False) == pytest.approx(
        10 * first_norm(1.0, white=False), rel=1e-3
    )
    assert first_norm(10.0, white=True) == pytest.approx(first_norm(1.0, white=True), rel=1e-3)


def test_each_body_is_whitened_by_itself() -> None:
    chosen, part = (True, True, False, True, True), (0, 0, 1, 1, 1)
    paths = [
        SampledResponse((1,), (5,) * 5, chosen, part, chosen, (True, True), ("a", "b"))
        for _ in range(2)
    ]
    real = torch.ones(2, 4)
    real[1, 3] = 0.0
    advantages = torch.tensor([[0.1, 0.0, 30.0, -10.0], [0.0, 0.1, 10.0, 99.0]])
    found = whiten_by_part(advantages, real, paths)
    torch.testing.assert_close(
        found[:, :2], torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), atol=1e-4, rtol=0
    )
    answers = torch.tensor([30.0, -10.0, 10.0])
    expected = (answers - answers.mean()) / answers.std(unbiased=False)
    torch.testing.assert_close(found[real.bool()][[2, 3, 6]], expected)
    assert found[1, 3] == 0


def test_what_a_prompt_gives_every_response_moves_nothing_with_several_responses() -> None:
    def trained(bonus: float, *, responses: int) -> torch.Tensor:
        ppo = bandit(
            updates=1, minibatches=1, responses=responses, whiten_advantages=False, value=0.0
        )
        plain = ppo.collector.task.terms
        ppo.collector.task.terms = lambda indices, paths: [  # pyright: ignore[reportAttributeAccessIssue]
            {**row, "prompt": bonus * (index % 2)}
            for index, row in zip(indices, plain(indices, paths), strict=True)
        ]
        train(ppo)
        return torch.cat(
            [p.detach().flatten() for p in ppo.adapted.parameters() if p.requires_grad]
        )

    torch.testing.assert_close(trained(3.0, responses=4), trained(0.0, responses=4))
    assert not torch.allclose(trained(3.0, responses=1), trained(0.0, responses=1))


def test_an_update_asks_each_prompt_as_often_as_set() -> None:
    ppo = bandit(responses=4)
    asked = ppo.indices(0)
    assert len(asked) == 32
    assert asked == [index for index in asked[::4] for _ in range(4)]
    assert not set(asked) & set(ppo.indices(1)) or len(ppo.collector.task.prompts) < 16
    assert sum(shares(train(bandit(responses=4)))[-5:]) / 5 >= 0.95


def with_reward(layers: tuple[float, float], **changes: Any) -> PpoObjective:
    """The bandit with a reward model whose LoRA and head hold random numbers."""
    ppo = bandit(updates=2, kl_target=1.0, kl=0.1, entropy=0.01, **changes)
    ppo.adapted.add_reward(LoraSettings(rank=2, layers=layers))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in ppo.adapted.named_parameters():
            if ".reward." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        head = ScalarHead(32).requires_grad_(False)
        head.linear.weight.copy_(torch.randn(head.linear.weight.shape, generator=generator))
    ppo.adapted.train_only("default")
    ppo.collector.reward = RewardModel(head, ppo.adapted.reward_layer())
    return ppo


@pytest.mark.parametrize("layers", [(0.0, 1.0), (0.5, 1.0), (0.75, 1.0)])
@pytest.mark.parametrize("reference", ["sft", "base"])
def test_the_shared_trunk_gives_the_reward_models_own_scores(
    layers: tuple[float, float], reference: str
) -> None:
    ppo = with_reward(layers, reference=reference)
    torch.manual_seed(0)
    ppo.collect(0, lambda: None)
    assert ppo.rollout
    assert ppo.collector.reward
    with torch.no_grad():
        alone = ppo.collector.reward.score(ppo.adapted, ppo.rollout.ids, ppo.rollout.mask).clamp(
            -3, 3
        )
    expected = ppo.settings.weights.reward_model * float(alone.mean())
    assert ppo.facts["reward/reward_model"] == pytest.approx(expected, abs=1e-5)


def test_with_a_reward_model_and_a_moving_coefficient_it_resumes_to_the_last_bit(
    tmp_path: FilePath,
) -> None:
    whole = with_reward((0.75, 1.0))
    train(whole)
    assert whole.kl.coefficient != 0.1
    left = [7]

    def check() -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise StoppedError("asked to")

    def saving(check: Callable[[], None]) -> SnapshotPolicy:
        return SnapshotPolicy(
            SnapshotStore(tmp_path, fingerprint="same", keep=3), interval_s=1e9, check=check
        )

    stopped = with_reward((0.75, 1.0))
    with pytest.raises(StoppedError):
        train(stopped, TrainServices(snapshots=saving(check)))
    again = with_reward((0.75, 1.0))
    train(again, TrainServices(snapshots=saving(lambda: None)))
    assert again.kl.coefficient == whole.kl.coefficient
    assert _timeless(again.updates) == _timeless(whole.updates)


def test_decisions_stay_where_they_were() -> None:
    def moved(weight: float) -> float:
        ppo = bandit(updates=20, decision=weight)
        ppo.collector.task.decides = True
        heads = ppo.adapted.head, ppo.adapted.reference_head
        for head in heads:
            assert head
            torch.manual_seed(3)
            torch.nn.init.normal_(head.linear.weight, std=0.3)
        logs = train(ppo)
        assert heads[1]
        assert torch.equal(heads[0].linear.weight, heads[1].linear.weight)
        assert shares(logs)[-1] > shares(logs)[0] + 0.2  # it learned something else all the same
        ids = torch.tensor(ppo.collector.task.prompts)
        mask = torch.ones_like(ids)
        with torch.no_grad():
            now = ppo.adapted.decide(ppo.adapted.hidden(ids, mask), mask)
            with ppo.adapted.acting_as("reference"):
                before = ppo.adapted.decide(ppo.adapted.hidden(ids, mask), mask)
        return float(drift(now, before.log_softmax(-1)))

    assert moved(5.0) < 0.2 * moved(0.0)


def test_what_is_due_early_counts_from_there_and_the_sum_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def returns(early: dict[int, float]) -> torch.Tensor:
        ppo = bandit(updates=1, lam=1.0, kl=0.0)
        monkeypatch.setattr(ppo.collector.task, "shaped_rewards", lambda *_: early)
        torch.manual_seed(0)
        ppo.collect(0, lambda: None)
        assert ppo.rollout
        return ppo.rollout.returns

    whole, early = returns({}), returns({0: 0.5, 2: 0.25})
    torch.testing.assert_close(whole, whole[:, :1].expand_as(whole))  # everything at the end
    torch.testing.assert_close(whole - early, torch.tensor([0.0, 0.5, 0.5, 0.75]).expand_as(whole))


def test_learning_rates_rise_over_the_warmup_and_fall_over_the_decay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ppo = bandit(updates=4, minibatches=1, epochs=1, warmup=0.5, decay=0.5)
    full, seen = [group["lr"] for group in ppo.optimizer.param_groups], []
    step = ppo.optimizer.step
    monkeypatch.setattr(
        ppo.optimizer,
        "step",
        lambda: (seen.append([g["lr"] for g in ppo.optimizer.param_groups]), step()),
    )
    train(ppo)
    assert seen == [[rate / 2 for rate in full], full, full, [rate / 2 for rate in full]]


def test_an_update_ends_early_beyond_its_kl() -> None:
    stopped = train(bandit(updates=2, epochs=4, stop_kl=1e-9))
    assert [log["steps"] for log in stopped] == [
        2,
        2,
    ]  # the first step never moves away, the second does
    assert [log["steps"] for log in train(bandit(updates=2, epochs=4))] == [8, 8]


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    ppo = bandit(updates=2)
    ppo.value.linear.bias.data.fill_(float("nan"))
    before = [parameter.clone() for parameter in ppo.adapted.parameters()]
    with pytest.raises(AegisError, match=r"PPO step 1, update 1, rows .* must be finite"):
        train(ppo)
    assert all(torch.equal(a, b) for a, b in zip(before, ppo.adapted.parameters(), strict=True))


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
@pytest.mark.parametrize("inside", ["a step", "sampling"])
def test_stopped_anywhere_and_resumed_is_uninterrupted(
    tmp_path: FilePath, stop_at: int, inside: str
) -> None:
    whole = bandit(updates=3)
    train(whole)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        # Sampling asks once a token (4), a step once.
        at = {"a step": [5, 6, 11, 12, 17][stop_at - 1], "sampling": 6 * (stop_at // 2) + 2}[inside]
        if calls == at or calls == at + 1:
            raise StoppedError("asked to")

    def saving(check: Callable[[], None]) -> SnapshotPolicy:
        store = SnapshotStore(tmp_path, fingerprint="same", keep=3)
        return SnapshotPolicy(store, interval_s=1e9, check=check)

    with pytest.raises(StoppedError, match="from step"):
        train(bandit(updates=3), TrainServices(snapshots=saving(check)))
    torch.manual_seed(99)
    again = bandit(updates=3)
    train(again, TrainServices(snapshots=saving(lambda: None)))
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            whole.adapted.state_dict().values(), again.adapted.state_dict().values(), strict=True
        )
    )
    assert _timeless(whole.updates) == _timeless(again.updates)


def _timeless(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in log.items() if "second" not in key} for log in logs]
