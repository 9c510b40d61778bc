from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.export.licences import licence_of, terms_files
from aegis.model.token_head import read_metadata


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", {"id": "mit"}),
        ("---\nlicense: [a, b]\n---\n", {}),
        ("# A\n", {}),
        (
            "---\nlicense: other\nlicense_name: x-1\nlicense_link: https://x.test/l\n---\n",
            {"id": "other", "name": "x-1", "url": "https://x.test/l"},
        ),
    ],
)
def test_the_licence_is_what_the_bases_card_says(
    tmp_path: Path, card: str, licence: dict[str, str]
) -> None:
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "metadata.json").write_text(json.dumps({"base": {"spec": str(tmp_path)}}))
    assert licence_of(tmp_path) == licence


def test_without_metadata_nothing_is_known(tmp_path: Path) -> None:
    assert read_metadata(tmp_path) == {}
    assert licence_of(tmp_path) == {}
    (tmp_path / "metadata.json").write_text('{"base": {"spec": "embedded"}}')
    assert licence_of(tmp_path)["id"] == "apache-2.0"
    (tmp_path / "metadata.json").write_text('{"base": {"spec": "gone"}, "licence": {"id": "mit"}}')
    assert licence_of(tmp_path) == {"id": "mit"}


def test_terms_are_found_whatever_their_case_and_nothing_else_is(tmp_path: Path) -> None:
    terms = ["LICENSE", "GEMMA_TERMS.html", "NOTICE.txt", "USE_POLICY.md", "licence.md"]
    for name in [*terms, "config.json", "README.md", "model.safetensors"]:
        (tmp_path / name).write_text("x")
    (tmp_path / "LICENSES").mkdir()
    assert [path.name for path in terms_files(tmp_path)] == sorted(terms)
