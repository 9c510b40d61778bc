from __future__ import annotations

from collections.abc import Iterator

import pytest

from aegis.data.sources.web.fetch import Fetcher
from tests.data.sources.web.rude import RudeServer, make_fetcher, rude_server


@pytest.fixture
def server() -> Iterator[RudeServer]:
    with rude_server() as server:
        yield server


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    fetcher = make_fetcher()
    yield fetcher
    fetcher.close()
