from __future__ import annotations

from typing import Any

import pytest
import torch

from aegis.config import GateSettings, LoraSettings, ModelSettings
from aegis.errors import ModelError
from aegis.model.adapted import Adapted, attach, freeze_report
from tests.conftest import ARCHITECTURES, tiny_model

IDS = torch.arange(5, 25).reshape(2, 10)
MASK = torch.ones_like(IDS)


def randomised(model: Any, settings: ModelSettings | None = None) -> Adapted:
    """Attached, with every trainable number random, as after training."""
    torch.manual_seed(5)
    adapted = attach(model, settings or ModelSettings()).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.set_alpha(1.618)
    return adapted


@torch.no_grad()
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma2"])
def test_hidden_states_and_logits_are_the_models_own(architecture: str) -> None:
    adapted = randomised(tiny_model(architecture))
    whole = adapted.base(input_ids=IDS, attention_mask=MASK).logits
    torch.testing.assert_close(
        adapted.logits(adapted.hidden(IDS, MASK)), whole, atol=1e-5, rtol=1e-5
    )


def test_gates_sit_on_lm_head_and_the_middle_layers() -> None:
    adapted = attach(tiny_model("llama", num_hidden_layers=8), ModelSettings())
    expected = [f"model.layers.{i}.self_attn.o_proj" for i in (2, 3, 4, 5)]
    assert list(adapted.gate_names) == [*expected, "lm_head"]
    more = GateSettings(lm_head=False, layers=(0, 0), also=("*.0.mlp.down_proj",))
    assert attach(tiny_model(), ModelSettings(gates=more)).gate_names == (
        "model.layers.0.mlp.down_proj",
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_attachments_train(architecture: str) -> None:
    model = tiny_model(architecture)
    adapted = attach(model, ModelSettings())
    report = freeze_report(adapted)
    assert report.total == sum(p.numel() for p in adapted.parameters())
    assert report.trainable["gates"] == sum(g.generators.numel() for g in adapted.all_gates())
    assert [kind for kind, count in report.trainable.items() if not count] == [
        "tags"
    ]  # attached without any
    assert 0 < report.percent < 50
    before = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    hidden = adapted.hidden(IDS, MASK)
    (
        adapted.logits(hidden).float().pow(2).mean() + adapted.decide(hidden, MASK)[:, 0].sum()
    ).backward()
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)
    torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad]).step()
    assert all(
        torch.equal(p, before[name])
        for name, p in adapted.named_parameters()
        if not p.requires_grad
    )


def test_a_base_weight_that_would_train_is_refused() -> None:
    adapted = attach(tiny_model(), ModelSettings())
    adapted.base.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ModelError, match="would train"):
        freeze_report(adapted)


def test_targets_that_match_nothing_are_told() -> None:
    with pytest.raises(ModelError, match="no linear layer matches"):
        attach(tiny_model(), ModelSettings(lora=LoraSettings(targets=("w_pack",))))
    with pytest.raises(ModelError, match=r"'nothing\*' matches no linear layer"):
        attach(tiny_model(), ModelSettings(gates=GateSettings(also=("nothing*",))))
