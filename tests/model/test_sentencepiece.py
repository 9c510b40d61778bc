from __future__ import annotations

from pathlib import Path

import pytest

from aegis.model.sentencepiece import sentencepiece_model
from tests.export.conftest import sentencepiece_tokenizer

gguf = pytest.importorskip("gguf")
TEXTS = ("Hello  there,\nall", "日本 naïve", "def f(x):\n\treturn x")


def write(path: Path, source: Path, kind: str) -> None:
    """Write only a tokenizer, as llama.cpp's converter does."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(source))
    numbers = range(pieces.vocab_size())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list([pieces.id_to_piece(number) for number in numbers])
    writer.add_token_scores([pieces.get_score(number) for number in numbers])
    types = [6 if pieces.is_byte(number) else 1 for number in numbers]
    writer.add_token_types([3, 3, 3, *types[3:]])  # Gemma's file calls <unk> a control token
    writer.add_unk_token_id(pieces.unk_id())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_what_is_read_from_gguf_reads_texts_as_the_original_does(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece_tokenizer(tmp_path)
    source, file = tmp_path / "tokenizer.model", tmp_path / "x.gguf"
    write(file, source, "llama")
    content = sentencepiece_model(file)
    assert content
    again = sentencepiece.SentencePieceProcessor(model_proto=content)
    original = sentencepiece.SentencePieceProcessor(model_file=str(source))
    numbers = range(original.vocab_size())
    assert [again.get_score(n) for n in numbers] == [original.get_score(n) for n in numbers]
    assert again.unk_id() == original.unk_id()
    # The trainer's own file drops runs of spaces, which GGUF cannot say.
    texts = [" ".join(text.split()) for text in TEXTS]
    assert [again.encode(text) for text in texts] == [original.encode(text) for text in texts]


def test_a_tokenizer_of_another_kind_has_none(tmp_path: Path) -> None:
    sentencepiece_tokenizer(tmp_path)
    write(tmp_path / "x.gguf", tmp_path / "tokenizer.model", "gpt2")
    assert sentencepiece_model(tmp_path / "x.gguf") is None
