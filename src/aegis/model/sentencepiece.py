"""SentencePiece's kind of tokenizer out of a GGUF file, in the form that converters read again."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

_UNKNOWN, _CONTROL, _BYTE, _BPE = 2, 3, 6, 2  # types of pieces are numbered alike in GGUF


def sentencepiece_model(gguf: Path) -> bytes | None:
    """Return the `tokenizer.model` of a GGUF file whose tokenizer is SentencePiece's.

    Only there do the scores outlive by which llama.cpp merges: transformers keeps none of them.
    None for a tokenizer of another kind, or where no sentencepiece is installed.
    """
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields

    def value(name: str, otherwise: Any = None) -> Any:
        field = fields.get(f"tokenizer.ggml.{name}")
        return otherwise if field is None else field.contents()

    if value("model") != "llama" or not value("scores"):
        return None
    if not (importlib.util.find_spec("sentencepiece") and importlib.util.find_spec("google")):
        return None
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    unknown = value("unknown_token_id", 0)
    for number, (piece, score, kind) in enumerate(
        zip(value("tokens"), value("scores"), value("token_type"), strict=True)
    ):
        if number == unknown or kind == _UNKNOWN:  # there is exactly one
            kind = _UNKNOWN if number == unknown else _CONTROL
        proto.pieces.add(piece=piece, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size = _BPE, len(proto.pieces)
    trainer.byte_fallback = any(piece.type == _BYTE for piece in proto.pieces)
    trainer.unk_id, trainer.unk_piece = unknown, proto.pieces[unknown].piece
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(value("add_space_prefix", True))
    normalizer.remove_extra_whitespaces = False
    return proto.SerializeToString()
