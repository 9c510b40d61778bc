from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.fakes import House, house


@pytest.fixture
def plain(tmp_path: Path) -> House:
    return house(tmp_path)
