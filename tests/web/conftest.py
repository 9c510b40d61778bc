from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from aegis.web.app import build_ui


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def browser(runs: Path) -> TestClient:
    """Whoever asks for pages on this machine."""
    return TestClient(build_ui(runs), base_url="http://127.0.0.1:8080")
