from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.export.licences import EMBEDDED_LICENCE, licence_of, read_metadata


@pytest.mark.parametrize(
    ("card", "licence"),
    [("---\nlicense: mit\n---\n", "mit"), ("---\nlicense: [a, b]\n---\n", None), ("# A\n", None)],
)
def test_the_licence_is_what_the_bases_card_says(
    tmp_path: Path, card: str, licence: str | None
) -> None:
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "metadata.json").write_text(json.dumps({"base": {"spec": str(tmp_path)}}))
    assert licence_of(tmp_path) == licence


def test_without_metadata_nothing_is_known(tmp_path: Path) -> None:
    assert read_metadata(tmp_path) == {}
    assert licence_of(tmp_path) is None
    (tmp_path / "metadata.json").write_text('{"base": {"spec": "embedded"}}')
    assert licence_of(tmp_path) == EMBEDDED_LICENCE
