from __future__ import annotations

from typing import Any

from aegis.config import GenerateSettings
from aegis.engine.generate import complete
from tests.conftest import tiny_model


def test_the_same_seed_gives_the_same_texts(tokenizer: Any) -> None:
    model = tiny_model()
    settings = GenerateSettings(max_new_tokens=6, temperature=1.0, top_p=0.9)
    first = complete(model, tokenizer, ["a", "bb", "ccc"], settings, seed=1)
    assert first == complete(model, tokenizer, ["a", "bb", "ccc"], settings, seed=1)
    assert first != complete(model, tokenizer, ["a", "bb", "ccc"], settings, seed=2)
    assert len(first) == 3
