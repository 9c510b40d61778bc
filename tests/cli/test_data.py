from __future__ import annotations

from tests.cli.test_serve import called


def test_the_group_names_its_verbs() -> None:
    assert "convert" in called("data", "--help").stdout
