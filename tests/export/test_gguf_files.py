from __future__ import annotations

from pathlib import Path

import pytest

from aegis.errors import (
    ModelError,
)
from aegis.export.gguf_files import converter_error, plain_pre_tokenizer
from tests.export.conftest import merging_tokenizer


def test_gpt2s_pre_tokenizer_is_recognised_and_no_other(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    tokenizer = merging_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert plain_pre_tokenizer(tmp_path) == "gpt-2"
    plain = tokenizer.backend_tokenizer.pre_tokenizer
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), plain]
    )
    tokenizer.save_pretrained(tmp_path)
    assert plain_pre_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        plain_pre_tokenizer(tmp_path)


def test_what_the_converter_says_is_passed_on(folded: Path) -> None:
    unknown = converter_error(
        folded,
        "x\nNotImplementedError: BPE pre-tokenizer was not recognized - "
        "update get_vocab_base_pre()",
    )
    assert "--pre-tokenizer" in str(unknown)
    assert "ERROR: Model X is not supported" in str(
        converter_error(folded, "INFO: a\nERROR: Model X is not supported\n\n")
    )
