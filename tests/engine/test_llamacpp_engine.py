from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.engine.llamacpp_engine import LlamaCppEngine, find_gguf
from aegis.engine.response_grammar import Limits
from aegis.engine.response_sampler import ResponseSampler
from aegis.errors import DataError, MissingPackageError, ModelError
from aegis.model.calibration import Threshold
from aegis.model.heads import DecisionHead, Pooling
from aegis.model.prompt import PromptEncoder
from aegis.model.tags import known_tags
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import Thinking, compose, looks_like_a_tag, parse
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.conftest import LIMITS, PROMPTS, SYSTEM, judged, write, write_model
from tests.serve.tiny_gguf import write_gguf

pytest.importorskip("cyllama")


def test_decisions_are_those_of_transformers(engine: LlamaCppEngine, folder: Path) -> None:
    expected = judged(folder, PROMPTS)
    for found, wanted in zip(engine.judge(PROMPTS), expected, strict=True):
        assert found.decision == wanted.decision
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-4)
    assert len({verdict.probabilities for verdict in expected}) == len(PROMPTS)
    assert engine.judge([]) == []


@pytest.mark.parametrize(
    ("architecture", "pooling"), [("qwen2", "last"), ("phi3", "mean"), ("mistral", "last+mean")]
)
def test_other_models_and_poolings_decide_and_think_alike(
    architecture: str, pooling: Pooling, tmp_path: Path
) -> None:
    model, tokenizer = write_model(tmp_path / "m", architecture, pooling=pooling)
    engine = LlamaCppEngine.load(tmp_path / "m", threads=1, slots=2)
    expected = judged(tmp_path / "m", PROMPTS)
    for found, wanted in zip(engine.judge(PROMPTS), expected, strict=True):
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-4)
    assert write(engine, "Hi") == greedy(model, tokenizer, "Hi")
    engine.close()


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_decide_alike_and_stand_before_the_thinking(tied: bool, tmp_path: Path) -> None:
    model, tokenizer = write_model(tmp_path / "m", token=True, tie_word_embeddings=tied)
    engine = LlamaCppEngine.load(tmp_path / "m", threads=1, slots=2)
    expected = judged(tmp_path / "m", PROMPTS)
    for given, wanted in zip(engine.judge(PROMPTS), expected, strict=True):
        assert given.probabilities == pytest.approx(wanted.probabilities, abs=1e-4)
    assert len({verdict.decision for verdict in expected}) > 1
    assert write(engine, "Hi") == greedy(model, tokenizer, "Hi")
    engine.close()


def test_what_lies_below_the_threshold_goes_to_a_person(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [*PROMPTS, *(f"{n} {prompt}" for n in range(9) for prompt in PROMPTS)]
    before = engine.judge(prompts)
    made = Threshold(1.0, 0.05, 0.95, 60, 0, 0.049, "0" * 64)
    calibration = replace(engine.head.calibration, threshold=made)
    monkeypatch.setattr(engine, "head", replace(engine.head, calibration=calibration))
    after = engine.judge(prompts)
    assert Decision.ALLOW in {verdict.decision for verdict in before}
    for one, other in zip(before, after, strict=True):
        allowed = one.decision is Decision.ALLOW
        assert other.decision is (Decision.ESCALATION if allowed else one.decision)
        assert other.rule.startswith("below τ 1") == allowed


def test_f16_decides_nearly_alike(tmp_path: Path) -> None:
    write_model(tmp_path / "m", kind="f16")
    engine = LlamaCppEngine.load(tmp_path / "m", threads=1)
    for found, wanted in zip(engine.judge(PROMPTS), judged(tmp_path / "m", PROMPTS), strict=True):
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=0.02)
    engine.close()


def greedy(model: Any, tokenizer: Any, prompt: str) -> Thinking | None:
    ids = PromptEncoder(tokenizer, SYSTEM).ids(prompt)
    sampler = ResponseSampler(model, tokenizer, known_tags(tokenizer), LIMITS)
    return sampler([ids], [Decision.DENY], temperature=0)[0].usable_thinking()


def test_the_most_probable_response_is_that_of_transformers(
    engine: LlamaCppEngine, folder: Path
) -> None:
    from aegis.model.base import ModelFolder

    model, tokenizer = (
        ModelFolder(folder).load_model(dtype=torch.float32),
        ModelFolder(folder).load_tokenizer(),
    )
    found = [write(engine, prompt) for prompt in PROMPTS]
    assert found == [greedy(model, tokenizer, prompt) for prompt in PROMPTS]
    assert len({thinking.public for thinking in found if thinking}) > 1


def test_every_response_has_the_protocols_form(engine: LlamaCppEngine) -> None:
    limits = Limits(section=6, final=9)
    with ThreadPoolExecutor(6) as pool:
        jobs = [
            pool.submit(write, engine, PROMPTS[seed % 5], temperature=1.5, seed=seed, limits=limits)
            for seed in range(20)
        ]
        found = [job.result(timeout=60) for job in jobs]
    for thinking in found:
        assert thinking is not None
        assert parse(compose(thinking)) == thinking
        for text, limit in [
            *((body.reveal(), 6) for body in thinking.bodies().values()),
            (thinking.public, 9),
        ]:
            assert not looks_like_a_tag(text)
            assert (
                len(text) <= limit
            )  # a token is a byte here, so that no character has less than one


def test_a_seed_gives_its_response_again(engine: LlamaCppEngine) -> None:
    responses = [write(engine, "Hi", temperature=1.0, seed=seed) for seed in (3, 3, 4)]
    assert responses[0] == responses[1] != responses[2]


def test_tag_like_text_in_ordinary_tokens_ends_the_body(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spelled = [
        number
        for letter in "ok <final"
        for number in engine.encoder.tokenizer(letter, add_special_tokens=False)["input_ids"]
    ]
    rows: list[Any] = []
    advance = engine.grammar.advance

    def remembered(row: Any, token: int | None) -> int | None:
        rows[:] = [row]
        return advance(
            row, token if token is None else spelled[min(len(row.body), len(spelled) - 1)]
        )

    monkeypatch.setattr(engine.grammar, "advance", remembered)
    thinking = write(engine, "Hi", limits=Limits(section=20, final=20))
    assert thinking is not None
    assert {body.reveal() for body in thinking.bodies().values()} | {thinking.public} == {
        "ok <fina"
    }
    assert not any(rows[0].closed)


def test_prompts_must_fit(engine: LlamaCppEngine) -> None:
    with pytest.raises(DataError, match="the model reads 512; shorten it"):
        engine.judge(["Hi", "x" * 500])
    with pytest.raises(DataError, match="shorten it"):
        write(engine, "x" * 460)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f / "gguf"), "holds no GGUF file; export the model"),
        (
            lambda f: (f / "gguf" / "model-f32.gguf").write_bytes(b"GGUF nonsense"),
            "llama.cpp cannot load it .*; export it again",
        ),
        (lambda f: DecisionHead(64).save(f), "is 32 wide, the decision head of .* 64"),
        (lambda f: (f / "decision_head.safetensors").unlink(), "has no decision head"),
        (
            lambda f: write_gguf(tiny_model(), byte_tokenizer(), f / "gguf" / "model-f32.gguf"),
            "has other tokens than",
        ),
        (shutil.rmtree, "no such model folder"),
    ],
)
def test_what_cannot_be_served_is_told(
    folder: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(ModelError, match=message):
        LlamaCppEngine.load(copy, threads=1)


def test_impossible_settings_are_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="slots must be >= 1, got 0"):
        LlamaCppEngine.load(folder, slots=0)
    with pytest.raises(
        ModelError, match="context must be in 1…512, what the model was trained for, got 9999"
    ):
        LlamaCppEngine.load(folder, threads=1, context=9999)
    with pytest.raises(ModelError, match=r"none.gguf: no such file"):
        LlamaCppEngine.load(folder, file=tmp_path / "none.gguf")
    monkeypatch.setattr("aegis.engine.llamacpp.importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'aegis-so8t\[gguf-serve\]'"):
        LlamaCppEngine.load(folder)


def test_the_most_exact_file_is_served(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    sizes = {
        "gguf/a-Q4_K_M.gguf": 3,
        "gguf/a-f16.gguf": 9,
        "b-00001-of-00002.gguf": 12,
        "b-00002-of-00002.gguf": 20,
    }
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    assert find_gguf(tmp_path).name == "b-00001-of-00002.gguf"
    (tmp_path / "b-00001-of-00002.gguf").unlink()
    assert find_gguf(tmp_path).name == "a-f16.gguf"
