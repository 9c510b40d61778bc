"""One base in several roles, and the trunk that they share."""

from __future__ import annotations

import torch

from aegis.config import LoraSettings
from aegis.model.adapted import Adapted, Role
from tests.model.test_tags import open_up, tagged

IDS = torch.randint(5, 260, (2, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 8:] = 0
ROLES: tuple[Role, ...] = ("policy", "reference", "reward", "base")


def with_all_roles(architecture: str = "llama") -> Adapted:
    adapted, _, _ = tagged(architecture)
    open_up(adapted)
    adapted.add_reference()
    adapted.add_reward(LoraSettings(rank=2, layers=(0.75, 1.0)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".reward." in name:
                parameter.normal_(std=0.1)
    return adapted.eval()


@torch.no_grad()
def test_the_reference_stays_when_the_policy_moves() -> None:
    adapted = with_all_roles()
    before = adapted.hidden(IDS, MASK)
    with adapted.acting_as("reference"):
        assert torch.equal(adapted.hidden(IDS, MASK), before)
    adapted.train_only("default")
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1)
    assert not torch.allclose(adapted.hidden(IDS, MASK), before)
    with adapted.acting_as("reference"):
        assert torch.equal(adapted.hidden(IDS, MASK), before)


@torch.no_grad()
def test_the_base_role_is_the_bare_base() -> None:
    from tests.conftest import tiny_model

    adapted = with_all_roles()
    with adapted.acting_as("base"):
        found = adapted.base(IDS).logits[..., :260]
    assert adapted.role == "policy"
    assert torch.equal(found, tiny_model()(IDS).logits[..., :260])


def test_only_what_is_asked_for_trains() -> None:
    adapted = with_all_roles()
    for trained, absent in (("reward", "default"), ("default", "reward")):
        adapted.train_only(trained)  # pyright: ignore[reportArgumentType]
        for role in ROLES:
            with adapted.acting_as(role):
                adapted.hidden(IDS, MASK)
            names = [
                name for name, parameter in adapted.named_parameters() if parameter.requires_grad
            ]
            assert any(f".{trained}." in name for name in names)
            assert not any(
                f".{absent}." in name or "reference" in name or "base_layer" in name
                for name in names
            )
            assert any(name.startswith("gates.") for name in names) == (trained == "default")
