"""The earlier names do what their successors do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aegis import compat
from aegis.config import ModelSettings
from aegis.model.adapted import attach
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import Thinking
from aegis.so8 import Gate, So8Loss, So8LossSettings
from tests.conftest import tiny_model


def test_every_name_is_there_and_says_what_it_is_now() -> None:
    assert set(compat.__all__) == {
        "BurnInProcessor",
        "SO8TLoss",
        "SO8TThinkingModel",
        "SafetyAwareSO8TConfig",
        "SelfVerification",
    }
    for name in compat.__all__:
        assert getattr(compat, name).__doc__
        assert f"| `{name}` |" in (compat.__doc__ or "")


def test_self_verification_escalates_what_the_paths_do_not_agree_on() -> None:
    def path(policy: str, final: str) -> Thinking:
        bodies = {"task": "a question", "safety": "nobody", "policy": policy, "final": "short"}
        return Thinking.from_bodies(bodies, final, where="t")

    answers = [
        path("ALLOW", "Water boils at 100 degrees."),
        path("ALLOW", "At sea level it boils at 100 degrees."),
    ]
    verify = compat.SelfVerification(threshold=0.9)
    assert verify("When does water boil?", answers).decision is Decision.ALLOW
    torn = [answers[0], path("REFUSE", "I cannot help with that.")]
    assert verify("When does water boil?", torn).decision is Decision.ESCALATION


@torch.no_grad()
def test_burning_in_leaves_a_plain_model_that_says_the_same() -> None:
    torch.manual_seed(0)
    adapted = attach(tiny_model(tie_word_embeddings=True), ModelSettings())
    assert isinstance(adapted, compat.SO8TThinkingModel)
    adapted.set_alpha(1.6)
    for gate in adapted.all_gates():
        gate.generators.normal_(std=0.3)
    ids = torch.randint(5, 200, (2, 9))
    live = adapted.base(input_ids=ids).logits.clone()
    plain: Any = compat.BurnInProcessor().burn_in(adapted)
    assert type(plain).__module__.startswith("transformers.")
    assert not any(
        isinstance(module, Gate) or module._forward_pre_hooks for module in plain.modules()
    )
    burnt = plain(input_ids=ids).logits
    torch.testing.assert_close(burnt, live, atol=1e-4, rtol=1e-4)
    assert (burnt - tiny_model(tie_word_embeddings=True)(input_ids=ids).logits).abs().max() > 0.01


def test_the_config_is_the_weights_of_the_loss() -> None:
    config = compat.SafetyAwareSO8TConfig(nu_orth=0.1, mu_norm=0.2, rho_iso=0.3, pet_lambda=0.4)
    assert config.to_settings() == So8LossSettings(
        pet=(0.4, 0.4, 0.4), nu_orth=0.1, mu_norm=0.2, rho_iso=0.3
    )
    phases = compat.SafetyAwareSO8TConfig(pet=(0.0, 0.1, 0.2)).to_settings()
    assert (phases.pet, phases.nu_orth) == ((0.0, 0.1, 0.2), 0.01)
    with pytest.raises(ValueError, match="must be >= 0"):
        compat.SafetyAwareSO8TConfig(nu_orth=-1.0)
    with pytest.raises(TypeError, match="role_split_ratio"):
        compat.SafetyAwareSO8TConfig(role_split_ratio=(0.5, 0.2, 0.15, 0.15))  # pyright: ignore[reportCallIssue]


def test_the_loss_is_the_loss_of_today() -> None:
    torch.manual_seed(0)
    gate, hidden, task = (
        Gate(16, mode="additive", alpha=0.5, std=0.3),
        torch.randn(2, 7, 16),
        torch.tensor(1.5),
    )
    config = compat.SafetyAwareSO8TConfig(nu_orth=0.1, mu_norm=0.2, rho_iso=0.3, pet_lambda=0.4)
    given: dict[str, Any] = {"progress": 0.5, "gates": [gate], "hidden": hidden}
    earlier = compat.SO8TLoss(config)(task, **given)
    today = So8Loss(config.to_settings())(task, **given)
    assert torch.equal(earlier[0], today[0])
    assert earlier[1] == today[1]
    assert earlier[1].keys() == {"task", "pet", "orth", "norm", "iso"}
    assert earlier[0] > task
    assert compat.SO8TLoss()(task, **given)[0] == task
