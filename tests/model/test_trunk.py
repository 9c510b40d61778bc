from __future__ import annotations

import pytest
import torch

from aegis.config import (
    LoraSettings,
)
from aegis.model.base import Base
from tests.conftest import ARCHITECTURES
from tests.model.conftest import needs_bitsandbytes
from tests.model.test_quantize import attached, open_up
from tests.model.test_roles import IDS, MASK, ROLES, with_all_roles


@needs_bitsandbytes
@torch.no_grad()
def test_roles_and_trunk_are_bit_equal_on_a_quantised_base(base: Base) -> None:
    adapted = attached(base, "nf4")
    open_up(adapted)
    adapted.add_reference()
    adapted.add_reward(LoraSettings(rank=2, layers=(0.75, 1.0)))
    for name, parameter in adapted.named_parameters():
        if ".reward." in name:
            parameter.normal_(std=0.1)
    bare = base.load_model(dtype=torch.float32, quantization="nf4", attention="eager")
    with adapted.acting_as("base"):
        assert torch.equal(adapted.base(IDS).logits[..., :260], bare(IDS).logits[..., :260])
    layer = adapted.lowest_layer()
    trunk = adapted.trunk(IDS, MASK, layer=layer)
    for role in ROLES:
        with adapted.acting_as(role):
            whole = adapted.hidden(IDS, MASK)
            assert torch.equal(adapted.hidden(IDS, MASK, trunk=trunk), whole), role
            hidden, higher = adapted.hidden_and_trunk(IDS, MASK, layer=3, trunk=trunk)
            assert torch.equal(hidden, whole)
            assert torch.equal(adapted.hidden(IDS, MASK, trunk=higher), whole)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trunk_gives_what_the_whole_pass_gives(architecture: str) -> None:
    adapted = with_all_roles(architecture)
    layer = adapted.lowest_layer()
    assert (layer, adapted.reward_layer(), adapted.depth) == (2, 3, 4)
    trunk = adapted.trunk(IDS, MASK, layer=layer)
    for role in ROLES:
        with adapted.acting_as(role):
            whole = adapted.hidden(IDS, MASK)
            assert torch.equal(adapted.hidden(IDS, MASK, trunk=trunk), whole), role
            for catch in (3, 4):
                hidden, higher = adapted.hidden_and_trunk(IDS, MASK, layer=catch, trunk=trunk)
                assert torch.equal(hidden, whole)
                assert torch.equal(adapted.hidden(IDS, MASK, trunk=higher), whole)
