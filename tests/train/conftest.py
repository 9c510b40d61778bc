from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import tagged_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The tiny tokenizer, with the protocol's tags."""
    return tagged_tokenizer()
