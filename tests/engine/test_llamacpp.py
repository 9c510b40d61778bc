from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aegis.engine.llamacpp import GgufModel, InputToken
from aegis.errors import ModelError
from tests.engine.conftest import write_model

pytest.importorskip("cyllama")


def test_a_file_is_read_as_transformers_reads_the_model(tmp_path: Path) -> None:
    model, tokenizer = write_model(tmp_path / "m")
    file = GgufModel(tmp_path / "m" / "gguf" / "model-f32.gguf")
    file.open(cells=64, step=64, threads=1)
    ids = tokenizer("Hello there")["input_ids"]
    assert file.spelling(tokenizer.convert_tokens_to_ids("<final>")) == "<final>"
    assert file.metadata("general.architecture") == "llama"
    assert file.metadata("no.such.key") is None
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(file.text_logits(ids), expected, atol=1e-4)
    np.testing.assert_allclose(file.text_logits(ids, slice(1, None, 3)), expected[1::3], atol=1e-4)
    file.close()


def test_a_sequence_can_be_cut_and_read_on(tmp_path: Path) -> None:
    model, _ = write_model(tmp_path / "m")
    file = GgufModel(tmp_path / "m" / "gguf" / "model-f32.gguf")
    file.open(cells=64, step=64, threads=1, sequences=2)
    known, first, second = [2, 40, 41], [50, 51, 52], [60]
    for tail in (first, second):
        ids = [*known, *tail]
        start = 0 if tail is first else len(known)
        file.read(InputToken(ids[place], place, 0, True) for place in range(start, len(ids)))
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, -1].numpy()
        np.testing.assert_allclose(file.logits([len(ids) - start - 1])[0], expected, atol=1e-4)
        file.forget(0, after=len(known))
    file.close()


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.gguf: no such file; export the model"):
        GgufModel(tmp_path / "none.gguf")
