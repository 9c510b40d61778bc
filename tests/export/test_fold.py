from __future__ import annotations

import math
from typing import Literal

import pytest
import torch

from aegis.config import GateSettings, ModelSettings
from aegis.export.fold import fold_in_place
from aegis.model.adapted import attach
from tests.conftest import ARCHITECTURES, tiny_model
from tests.model.test_adapted import IDS, randomised


@torch.no_grad()
@pytest.mark.parametrize("mode", ["geodesic", "additive"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma2"])
def test_attaching_changes_no_bit_and_folding_changes_nothing_more(
    architecture: str, mode: Literal["geodesic", "additive"]
) -> None:
    settings = ModelSettings(gates=GateSettings(mode=mode))
    model = tiny_model(architecture, tie_word_embeddings=True)
    before = model(input_ids=IDS).logits
    adapted = attach(model, settings)
    adapted.set_alpha(-math.inf)
    for gate in adapted.all_gates():  # closed, whatever its generators
        torch.nn.init.normal_(gate.generators)
    assert torch.equal(model(input_ids=IDS).logits, before)
    adapted = randomised(tiny_model(architecture, tie_word_embeddings=True), settings)
    live = adapted.base(input_ids=IDS).logits
    assert float((live - before).abs().max()) > 1e-2
    folded = fold_in_place(adapted)
    after = folded(input_ids=IDS).logits
    torch.testing.assert_close(after, live, atol=2e-4, rtol=0)
    assert not any("lora" in name for name, _ in folded.named_parameters())
