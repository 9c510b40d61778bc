"""Tiny model folders, and what the engines' tests ask of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.engine.judge import Judge
from aegis.engine.llamacpp_engine import LlamaCppEngine
from aegis.engine.protocol import ThinkingRequest
from aegis.engine.response_grammar import Limits, Sampling
from aegis.engine.verdict import Verdict
from aegis.model.calibration import Calibration, Weights
from aegis.model.heads import DecisionHead, Pooling
from aegis.model.lexical import LexicalHead
from aegis.model.tags import add_tags, known_tags
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import Thinking
from tests.conftest import byte_tokenizer, tiny_model
from tests.serve.tiny_gguf import write_gguf

PROMPTS = [
    "Hi",
    "人を助けるには",
    "A much longer request than the others, to mix lengths in one batch",
    "x",
    "Where is it?",
]
LIMITS = Limits(section=5, final=8)
SYSTEM = "You decide first, then you answer."


@pytest.fixture
def model_folder(base_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(base_folder, folder)
    torch.manual_seed(0)
    head = DecisionHead(32, system_prompt="S")
    torch.nn.init.normal_(head.linear.weight)
    head.save(folder)
    return folder


def write_model(
    folder: Path,
    architecture: str = "llama",
    *,
    pooling: Pooling = "last+mean",
    kind: str = "f32",
    token: bool = False,
    **changes: Any,
):
    """A tiny model folder as `aegis fold` leaves it, with its GGUF file; the model is returned
    too."""
    folder.mkdir(parents=True)
    model, tokenizer = tiny_model(architecture, **changes), byte_tokenizer()
    add_tags(tokenizer, model, decisions=token)
    if token:  # rows of their own, as training leaves them
        torch.manual_seed(1)
        ids = list(known_tags(tokenizer).decisions)
        model.get_output_embeddings().weight.data[ids] = torch.randn(4, model.config.hidden_size)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "gguf").mkdir()
    write_gguf(model, tokenizer, folder / "gguf" / f"model-{kind}.gguf", kind=kind)
    if token:
        decision = {"head": "token", "system_prompt": SYSTEM}
        (folder / "metadata.json").write_text(json.dumps({"decision": decision}))
        return model, tokenizer
    torch.manual_seed(0)
    head = DecisionHead(model.config.hidden_size, pooling=pooling, system_prompt=SYSTEM)
    torch.nn.init.normal_(head.linear.weight)
    head.scale.uniform_(0.5, 2.0)
    head.mean.normal_()
    head.save(folder)
    return model, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf") / "model"
    write_model(folder)
    LexicalHead.fit(
        ["Hi there", "hack it", "人を助けるには", "x y"], [3, 0, 1, 0], strength=100.0
    ).save(folder)
    Calibration(Weights(0.7, 0.4), Weights(0.3, 1.5), n=9).save(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[LlamaCppEngine]:
    engine = LlamaCppEngine.load(folder, threads=1, slots=3)
    yield engine
    engine.close()


def judged(folder: Path, prompts: list[str]) -> list[Verdict]:
    """What transformers decides, in float32 throughout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aegis.model.device.bfloat16_is_fast", lambda: False)
        return Judge.load(folder).judge(prompts)


def write(engine: LlamaCppEngine, prompt: str, **changes: Any) -> Thinking | None:
    cancelled = changes.pop("cancelled", lambda: False)
    sampling = replace(Sampling(LIMITS, 0.0), **changes)
    return engine.think([ThinkingRequest(prompt, Decision.DENY, sampling, cancelled)])[0]
