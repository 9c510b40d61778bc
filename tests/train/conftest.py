from __future__ import annotations

from typing import Any

import pytest

from aegis.model.tags import add_tags
from tests.conftest import byte_tokenizer, tiny_model


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The tiny tokenizer, with the protocol's tags."""
    tokenizer = byte_tokenizer()
    add_tags(tokenizer, tiny_model())
    return tokenizer
