from __future__ import annotations

from typing import Any

from aegis.engine.generate import complete
from tests.conftest import tiny_model


def test_the_same_seed_gives_the_same_texts(tokenizer: Any) -> None:
    model = tiny_model()
    arguments: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "top_p": 0.9}
    first = complete(model, tokenizer, ["a", "bb", "ccc"], seed=1, **arguments)
    assert first == complete(model, tokenizer, ["a", "bb", "ccc"], seed=1, **arguments)
    assert first != complete(model, tokenizer, ["a", "bb", "ccc"], seed=2, **arguments)
    assert len(first) == 3
