from __future__ import annotations

import pytest
import torch

from aegis.model.adapted import Adapted
from aegis.model.base import Base
from aegis.model.grad_checkpoint import checkpoint_layers
from aegis.model.quantize import Quantization
from tests.model.conftest import needs_bitsandbytes
from tests.model.test_quantize import CASES, METHODS, attached, gradients, with_roles
from tests.model.test_roles import IDS, MASK

pytestmark = needs_bitsandbytes


@pytest.mark.parametrize("method", ["none", *METHODS])
def test_checkpointing_changes_no_gradient(llama: Base, method: Quantization) -> None:
    plain, checkpointed = with_roles(llama, method), with_roles(llama, method)
    checkpoint_layers(checkpointed)
    for training in (False, True) if method != "int8" else (False,):
        plain.train(training)
        checkpointed.train(training)
        for role, from_trunk, tagged in CASES:
            one = gradients(plain, role=role, from_trunk=from_trunk, tagged=tagged)
            two = gradients(checkpointed, role=role, from_trunk=from_trunk, tagged=tagged)
            assert one
            assert one.keys() == two.keys()
            assert all(torch.equal(one[name], two[name]) for name in one), (
                role,
                from_trunk,
                training,
            )
            assert checkpointed.role == "policy"


def test_checkpointing_keeps_less_for_the_backward_pass(llama: Base) -> None:
    def kept(adapted: Adapted) -> int:
        seen: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            adapted.hidden(IDS, MASK)
        own = {p.untyped_storage().data_ptr() for p in adapted.parameters()}
        return sum(size for place, size in seen.items() if place not in own)

    plain, checkpointed = attached(llama, "none"), attached(llama, "none")
    checkpoint_layers(checkpointed)
    assert kept(checkpointed) < kept(plain) / 4
