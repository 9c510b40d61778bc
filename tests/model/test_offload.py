from __future__ import annotations

import pytest
import torch

from aegis.config import (
    LoraSettings,
)
from aegis.errors import ConfigError
from aegis.model.adapted import freeze_report
from aegis.model.base import Base
from aegis.model.grad_checkpoint import checkpoint_layers
from aegis.model.offload import offload_layers, waiting_layers
from aegis.model.preflight import check_attachable
from aegis.model.quantize import Quantization
from tests.model.conftest import needs_bitsandbytes
from tests.model.test_quantize import CASES, attached, gradients, open_up, settings, with_roles

pytestmark = needs_bitsandbytes


@pytest.mark.parametrize("method", ["none", "nf4"])
def test_offloaded_layers_compute_the_same(llama: Base, method: Quantization) -> None:
    cpu = torch.device("cpu")
    plain, offloaded = with_roles(llama, method), attached(llama, method)
    open_up(offloaded)
    frozen = freeze_report(offloaded).frozen
    whole = sum(
        p.numel() * p.element_size()
        for n, p in offloaded.base.named_parameters()
        if ".lora_" not in n
    )
    assert (
        offload_layers(offloaded.base, device=cpu, room=whole - 1) == 2
    )  # one that waits and one whose room it needs
    layers = offloaded.base.get_decoder().layers
    assert all(p.numel() == 0 for n, p in layers[0].named_parameters() if "lora_" not in n)
    assert all(p.numel() > 0 for n, p in layers[2].named_parameters())
    assert freeze_report(offloaded).frozen == frozen
    checkpoint_layers(offloaded.to(cpu))
    offloaded.add_reference()
    offloaded.add_reward(LoraSettings(rank=2, layers=(0.75, 1.0)))
    values = dict(plain.named_parameters())
    for name, parameter in offloaded.named_parameters():
        if ".reward." in name:
            parameter.data.copy_(values[name])
    for role, from_trunk, tagged in CASES:
        one = gradients(plain, role=role, from_trunk=from_trunk, tagged=tagged)
        two = gradients(offloaded, role=role, from_trunk=from_trunk, tagged=tagged)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), (role, from_trunk)
    assert all(p.numel() == 0 for n, p in layers[0].named_parameters() if "lora_" not in n)


def test_the_lowest_layers_wait() -> None:
    assert waiting_layers([10] * 4, room=60, around=20) == 0
    assert waiting_layers([10] * 4, room=59, around=20) == 2
    assert waiting_layers([10] * 4, room=30, around=20) == 4
    with pytest.raises(ConfigError, match=r"model.offload: .* set model.quantization: nf4"):
        waiting_layers([10] * 4, room=29, around=20)


def test_offload_without_a_gpu_is_told(llama: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"model.offload: true needs a GPU, found none; set model.offload: false"
    ):
        check_attachable(llama, settings("nf4", offload=True, gradient_checkpointing=True))
