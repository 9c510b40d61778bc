from __future__ import annotations

import pytest

from aegis.config import GateSettings, ModelSettings
from aegis.errors import ModelError
from aegis.model.adapted import attach
from tests.conftest import tiny_model


def test_gemma_keeps_no_gate_on_lm_head_and_says_why() -> None:
    assert "lm_head" not in attach(tiny_model("gemma"), ModelSettings()).gate_names
    with pytest.raises(ModelError, match=r"drops lm_head.weight; set it to auto or false"):
        attach(tiny_model("gemma"), ModelSettings(gates=GateSettings(lm_head=True)))
