from __future__ import annotations

from pathlib import Path

from aegis.export import converter
from tests.export.conftest import merging_tokenizer, sentencepiece_tokenizer


def test_a_byte_level_tokenizer_is_told_from_sentencepieces(tmp_path: Path) -> None:
    merging_tokenizer().save_pretrained(tmp_path / "bytes")
    assert converter._is_byte_level(tmp_path / "bytes")
    sentencepiece_tokenizer(tmp_path).save_pretrained(tmp_path / "pieces")
    assert not converter._is_byte_level(tmp_path / "pieces")
