from __future__ import annotations

from typing import Any

import pytest
import torch

from aegis.config import GateSettings, ModelSettings
from aegis.errors import ModelError
from aegis.model.adapted import attach
from aegis.model.chunks import CHUNK, in_chunks
from aegis.model.lm_head import vocabulary_logits
from tests.conftest import tiny_model


def test_gemma_keeps_no_gate_on_lm_head_and_says_why() -> None:
    assert "lm_head" not in attach(tiny_model("gemma"), ModelSettings()).gate_names
    with pytest.raises(ModelError, match=r"drops lm_head.weight; set it to auto or false"):
        attach(tiny_model("gemma"), ModelSettings(gates=GateSettings(lm_head=True)))


@pytest.mark.parametrize(
    ("architecture", "scale"),
    [
        ("llama", {}),
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.0625}),
        ("gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8}),
    ],
)
def test_chunks_and_gradients_go_through_the_models_own_forward(
    architecture: str, scale: dict[str, Any]
) -> None:
    model = tiny_model(architecture, **scale).requires_grad_(False)
    words = torch.randn(1, CHUNK + 9, 32, generator=torch.Generator().manual_seed(0))
    logits, gradients = [], []
    for own in (True, False):
        leaf = words.clone().requires_grad_()
        hidden = model.get_decoder()(inputs_embeds=leaf).last_hidden_state
        if own:
            rows = model(inputs_embeds=leaf).logits[0]
        else:
            (rows,) = in_chunks(lambda part: (vocabulary_logits(model, part),), hidden[0])
        gradients += torch.autograd.grad(rows.logsumexp(-1).sum(), leaf)
        logits.append(rows.detach())
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
