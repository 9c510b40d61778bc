from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis.engine.llamacpp_engine import LlamaCppEngine
from aegis.engine.response_grammar import Limits
from aegis.errors import AegisError
from aegis.model.prompt import PromptEncoder
from tests.engine.conftest import LIMITS, PROMPTS, SYSTEM, judged, write, write_model

pytest.importorskip("cyllama")


def test_company_changes_nothing(engine: LlamaCppEngine) -> None:
    alone = {prompt: write(engine, prompt) for prompt in PROMPTS}
    sampled = {prompt: write(engine, prompt, temperature=0.8, seed=5) for prompt in PROMPTS}
    verdicts = {prompt: engine.judge([prompt])[0].probabilities for prompt in PROMPTS}
    before = engine._batcher.steps

    def everything(prompt: str) -> None:
        assert write(engine, prompt) == alone[prompt]
        assert engine.judge([prompt])[0].probabilities == pytest.approx(verdicts[prompt], abs=1e-5)
        assert write(engine, prompt, temperature=0.8, seed=5) == sampled[prompt]

    with ThreadPoolExecutor(10) as pool:
        for done in [pool.submit(everything, prompt) for prompt in PROMPTS * 2]:
            done.result(timeout=60)
    steps = engine._batcher.steps - before
    assert steps < 0.5 * 4 * len(PROMPTS) * LIMITS.total  # shared, not one after the other


def test_a_short_response_overtakes_a_long_one(engine: LlamaCppEngine) -> None:
    order: list[str] = []
    polls = iter(range(10**6))
    started = threading.Event()

    def under_way() -> bool:
        if next(polls) == 3:
            started.set()
        return False

    def long() -> None:
        write(
            engine, "Hi", limits=Limits(section=40, final=60), temperature=1.0, cancelled=under_way
        )
        order.append("long")

    thread = threading.Thread(target=long)
    thread.start()
    assert started.wait(30)
    write(engine, "x", limits=Limits(section=1, final=2))
    order.append("short")
    thread.join()
    assert order == ["short", "long"]


def test_a_cancelled_response_gives_its_slot_to_the_next(folder: Path) -> None:
    engine = LlamaCppEngine.load(folder, threads=1, slots=1)
    stop, started = threading.Event(), threading.Event()

    def cancelled() -> bool:
        started.set()
        return stop.is_set()

    endless = Limits(section=60, final=60)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(
            write, engine, "Hi", limits=endless, temperature=1.5, cancelled=cancelled
        )
        assert started.wait(30)
        assert engine.judge(["Hi"])  # decisions have places of their own
        assert not first.done()
        waiting = pool.submit(write, engine, "x", cancelled=lambda: True)  # never gets a slot
        assert waiting.result(timeout=30) is None
        last = pool.submit(write, engine, "Where?")
        time.sleep(0.01)
        stop.set()
        assert first.result(timeout=30) is None
        assert last.result(timeout=30) is not None
    assert len(engine._batcher.writings.free) == 1
    free = engine._batcher.writings.cells
    assert write(engine, "Hi") is not None
    assert engine._batcher.writings.cells == free
    engine.close()


def test_what_fails_in_one_request_is_told_to_that_one(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> bool:
        raise KeyError("whoever asked is gone")

    with pytest.raises(KeyError, match="is gone"):
        write(engine, "Hi", cancelled=broken)
    llama = engine._batcher.model
    before, read = write(engine, "Hi"), llama.read
    faults = iter([True])

    def failing(inputs: Any) -> None:
        if next(faults, False):
            raise RuntimeError("no room")
        read(inputs)

    monkeypatch.setattr(llama, "read", failing)
    with pytest.raises(AegisError, match=r"llama.cpp gave up \(no room\); ask again"):
        write(engine, "Hi")
    assert write(engine, "Hi") == before
    monkeypatch.setattr(llama, "pick", lambda *_: 0)
    with pytest.raises(AegisError, match="logits that are not finite"):
        write(engine, "Hi")
    monkeypatch.setattr(
        llama,
        "hidden",
        lambda indices: np.full((len(indices), llama.width), np.nan, dtype=np.float32),
    )
    with pytest.raises(AegisError, match="hidden states that are not finite"):
        engine.judge(["Hi"])


def test_prompts_of_many_steps_are_read_whole(tmp_path: Path) -> None:
    write_model(tmp_path / "m", max_position_embeddings=2048)
    engine = LlamaCppEngine.load(tmp_path / "m", threads=1, slots=2)
    prompts = ["x" * 900, "Hi", "y" * 700 + "z"]
    expected = judged(tmp_path / "m", prompts)
    for found, wanted in zip(engine.judge(prompts), expected, strict=True):
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-3)
    assert engine.prompt_tokens("x" * 900) == len(
        PromptEncoder(engine.encoder.tokenizer, SYSTEM).ids("x" * 900)
    )
    engine.close()


def test_a_closed_engine_says_so(folder: Path) -> None:
    engine = LlamaCppEngine.load(folder, threads=1, slots=1)
    started = threading.Event()

    def under_way() -> bool:
        started.set()
        return False

    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(
                write,
                engine,
                "Hi",
                limits=Limits(section=60, final=60),
                temperature=1.5,
                cancelled=under_way,
            )
            for _ in range(2)
        ]
        assert started.wait(30)
        engine.close()
        for job in jobs:
            with pytest.raises(AegisError, match="the engine is closed"):
                job.result(timeout=30)
    with pytest.raises(AegisError, match="the engine is closed"):
        engine.judge(["Hi"])
    engine.close()
