from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.errors import ModelError
from aegis.evaluate.benchmarks.models import name_model


def test_a_folder_is_known_by_its_content(save_base: Callable[..., Path], tmp_path: Path):
    first, other = save_base("llama"), save_base("llama", num_hidden_layers=2)
    info = name_model(str(first)).info
    assert (info.kind, info.engine, info.dtype) == ("hf", "transformers", "float32")
    assert info.name == first.name
    assert name_model(str(first), precision="bfloat16").info.dtype == "bfloat16"
    assert name_model(str(other)).info.content != info.content
    run = tmp_path / "run-1"
    run.mkdir()
    first.rename(run / "model")
    moved = name_model(str(run)).info
    assert (moved.name, moved.content) == ("run-1-model", info.content)
    metadata = {"base": {"spec": "embedded", "fingerprint": "ff"}}
    (run / "model" / "metadata.json").write_text(json.dumps(metadata))
    assert name_model(str(run / "model")).info.made_from == ("embedded", "ff")


@pytest.mark.parametrize("spec", ["./nowhere", "nowhere.gguf"])
def test_what_is_no_model_is_told(spec: str):
    with pytest.raises(ModelError, match="nowhere"):
        name_model(spec)
