"""Every engine does what the protocol says, and all give the same for the same model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.engine.answer import answer
from aegis.engine.llamacpp_engine import LlamaCppEngine
from aegis.engine.local_thinker import LocalThinker
from aegis.engine.protocol import Engine, ThinkingRequest
from aegis.engine.response_grammar import Limits, Sampling
from aegis.engine.transformers_engine import TransformersEngine
from aegis.errors import AegisError, DataError
from aegis.protocol.decisions import Decision
from tests.engine.conftest import PROMPTS, write_model

pytest.importorskip("cyllama")

GREEDY = Sampling(Limits(5, 8), temperature=0.0)
CHOICES = [" Paris", " the river Seine", "?", "", "パリ"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "model"
    write_model(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def float32_throughout() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aegis.model.device.bfloat16_is_fast", lambda: False)
        yield


@pytest.fixture(scope="module")
def local(folder: Path, float32_throughout: None) -> LocalThinker:
    return LocalThinker.load(folder)


@pytest.fixture(scope="module", params=["local", "transformers", "llama.cpp"])
def engine(request: Any, folder: Path, local: LocalThinker) -> Iterator[Engine]:
    made: Engine = local
    if request.param == "transformers":
        made = TransformersEngine(local)
    elif request.param == "llama.cpp":
        made = LlamaCppEngine.load(folder, threads=1, slots=3)
    yield made
    made.close()


def forward(model: Any, tokenizer: Any, context: str, choice: str) -> float:
    """The sum of the choice's log-probabilities by one pass over the whole text."""
    known = tokenizer(context)["input_ids"] or [tokenizer.bos_token_id]
    tail = tokenizer(choice, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[*known, *tail]])).logits[0].log_softmax(-1)
    return sum(float(logits[len(known) - 1 + place, token]) for place, token in enumerate(tail))


def test_every_engine_judges_all_readings_and_escalates_a_crisis(engine: Engine) -> None:
    hidden, plain = "H\u200bi t\u200bhere", "Hi there"
    crisis, disguised, alone = engine.judge(["もう死にたい", hidden, plain])
    assert crisis.decision == Decision.ESCALATION
    assert disguised.decision >= alone.decision
    assert disguised.probabilities[0] <= alone.probabilities[0] + 1e-3


def test_all_engines_are_named_and_read_alike(engine: Engine, local: LocalThinker) -> None:
    assert (engine.name, engine.context) == ("model", 512)
    assert engine.prompt_tokens("Hi") == len(local.encoder.ids("Hi"))


def test_all_engines_judge_alike(engine: Engine, local: LocalThinker) -> None:
    for verdict, expected in zip(engine.judge(PROMPTS), local.judge(PROMPTS), strict=True):
        assert verdict.decision == expected.decision
        assert verdict.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
    assert engine.judge([]) == []


def test_all_engines_think_alike(engine: Engine, local: LocalThinker) -> None:
    requests = [ThinkingRequest(prompt, Decision.DENY, GREEDY) for prompt in PROMPTS]
    assert engine.think(requests) == local.think(requests)
    assert engine.think([ThinkingRequest("Hi", Decision.DENY, GREEDY, lambda: True)]) == [None]
    assert engine.think([]) == []
    assert answer(engine, "Hi", GREEDY).final == answer(local, "Hi", GREEDY).final


def test_the_narrowest_nucleus_is_the_most_probable_token(engine: Engine) -> None:
    drawn = Sampling(GREEDY.limits, temperature=1.0, seed=1)
    texts = [
        engine.think([ThinkingRequest(PROMPTS[0], Decision.ALLOW, sampling)])
        for sampling in (GREEDY, replace(drawn, top_p=1e-6), drawn)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("context", ["The capital of France is", "x" * 300, "", "日本の"])
def test_continuations_are_those_of_a_plain_pass(
    engine: Engine, local: LocalThinker, context: str
) -> None:
    expected = [forward(local.model, local.tokenizer, context, choice) for choice in CHOICES]
    assert engine.continuations(context, CHOICES) == pytest.approx(expected, abs=1e-3)
    assert engine.continuations(context, CHOICES[:1]) == pytest.approx(expected[:1], abs=1e-3)
    assert engine.continuations(context, ["", ""]) == [0.0, 0.0]
    assert len(set(expected)) == len(CHOICES)


def test_many_threads_may_ask(engine: Engine, local: LocalThinker) -> None:
    if engine is local:
        return  # one call at a time
    alone = engine.continuations("The capital of France is", CHOICES)
    with ThreadPoolExecutor(6) as pool:
        jobs = [
            pool.submit(engine.continuations, "The capital of France is", CHOICES) for _ in range(9)
        ]
        written = pool.submit(engine.think, [ThinkingRequest("Hi", Decision.DENY, GREEDY)])
        for job in jobs:
            assert job.result(timeout=60) == pytest.approx(alone, abs=1e-4)
        assert written.result(timeout=60) != [None]


def test_what_is_too_long_is_refused(engine: Engine) -> None:
    with pytest.raises(DataError, match=r"context and choice: .* the model reads 512"):
        engine.continuations("x" * 500, ["y", "z" * 20])
    with pytest.raises(DataError, match="the model reads 512; shorten it"):
        engine.judge(["x" * 600])
    with pytest.raises(DataError, match="shorten it"):
        engine.think([ThinkingRequest("x" * 490, Decision.DENY, GREEDY)])


def test_a_closed_engine_weighs_nothing(folder: Path, local: LocalThinker) -> None:
    for engine in (TransformersEngine(local), LlamaCppEngine.load(folder, threads=1, slots=1)):
        engine.close()
        with pytest.raises(AegisError, match="the engine is closed"):
            engine.continuations("Hi", ["a"])
