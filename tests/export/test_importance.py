from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

from aegis.errors import (
    BadInputError,
    MissingPackageError,
)
from aegis.export import importance
from aegis.export.certificate import probe_texts
from aegis.model.base import ModelFolder
from tests.export.conftest import export


def test_importance_is_what_the_text_uses(folded: Path, converted: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(probe.text for probe in probe_texts()), encoding="utf-8")
    weights = importance.importance(
        folded, text, ModelFolder(folded).load_tokenizer(), gguf=converted
    )
    assert {"blk.0.attn_q.weight", "blk.3.ffn_down.weight"} < weights.keys()
    assert weights["blk.0.attn_q.weight"].shape == (32,)
    assert all((columns > 0).all() for columns in weights.values())
    text.write_text("short")
    with pytest.raises(BadInputError, match="512 are needed"):
        importance.importance(folded, text, ModelFolder(folded).load_tokenizer(), gguf=converted)


def test_the_quantiser_weighs_what_the_text_uses(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(probe.text for probe in probe_texts()), encoding="utf-8")
    plain = export(model, "Q4_0", output=tmp_path / "plain")["Q4_0"]
    weighed = export(model, "Q4_0", output=tmp_path / "weighed", imatrix=text)["Q4_0"]
    assert weighed["sha256"] != plain["sha256"]
    assert weighed["bytes"] == plain["bytes"]
    assert weighed["within"]


def test_a_missing_binding_for_imatrix_is_told_before_anything_is_done(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "llama_cpp" else find(name)
    )
    with pytest.raises(MissingPackageError, match=r"pip install 'aegis-so8t\[imatrix\]'"):
        export(model, "Q4_0", output=tmp_path / "out", imatrix=tmp_path / "text.txt")
    assert not (tmp_path / "out").exists()
