from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.engine.protocol import ThinkingRequest
from aegis.engine.response_grammar import Limits, Sampling
from aegis.engine.transformers_engine import TransformersEngine
from aegis.errors import AegisError, DataError
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import Thinking
from tests.engine.test_local_thinker import local_thinker
from tests.serve.fakes import house

LIMITS = Limits(section=6, final=9)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def engine() -> Any:
    made = TransformersEngine(local_thinker(Decision.ALLOW), name="tiny", gather_s=0.05)
    yield made
    made.close()


def ask(
    engine: TransformersEngine,
    prompt: str,
    *,
    seed: int = 0,
    limits: Limits = LIMITS,
    temperature: float = 1.0,
) -> Thinking | None:
    sampling = Sampling(limits, temperature, seed)
    return engine.think([ThinkingRequest(prompt, Decision.ALLOW, sampling)])[0]


def test_the_seed_fixes_the_answer_whatever_company_it_has(engine: TransformersEngine) -> None:
    wanted = [
        ("hello", 1, LIMITS),
        ("what is this?", 2, Limits(3, 20)),
        ("こんにちは", 3, LIMITS),
        ("hello", 4, LIMITS),
    ]
    alone = [ask(engine, prompt, seed=seed, limits=limits) for prompt, seed, limits in wanted]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda one: ask(engine, one[0], seed=one[1], limits=one[2]), wanted)
        )
    assert alone == together
    assert len({found.public for found in alone if found}) > 1
    assert ask(engine, "hello", temperature=0) == ask(engine, "hello", temperature=0, seed=9)


def test_what_is_asked_together_is_sampled_together(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    each = engine.thinker.sampler.each

    def counted(wanted: Any, **options: Any) -> None:
        sizes.append(len(wanted))
        each(wanted, **options)

    monkeypatch.setattr(engine.thinker.sampler, "each", counted)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: ask(engine, "hello", seed=seed), range(8)))
    assert sum(sizes) == 8
    assert len(sizes) <= 2


def test_decisions_do_not_wait_for_a_batch_to_end(engine: TransformersEngine) -> None:
    done: list[str] = []
    long = Limits(section=60, final=60)

    def think() -> None:
        ask(engine, "hello", limits=long)
        done.append("thought")

    begun, between = threading.Event(), engine._between_steps

    def noticed() -> None:
        begun.set()
        between()

    engine._between_steps = noticed
    thread = threading.Thread(target=think)
    thread.start()
    assert begun.wait(20)
    (verdict,) = engine.judge(["hello"])
    done.append("decided")
    thread.join()
    assert verdict.decision is Decision.ALLOW
    assert done == ["decided", "thought"]


def test_a_cancelled_row_goes_no_further_and_the_others_do(engine: TransformersEngine) -> None:
    steps = 0
    left = threading.Event()
    between = engine._between_steps

    def counted() -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            left.set()
        between()

    engine._between_steps = counted
    long = Limits(section=30, final=30)
    with ThreadPoolExecutor(2) as pool:
        gone = pool.submit(
            engine.think,
            [ThinkingRequest("hello", Decision.ALLOW, Sampling(long, 1.0), left.is_set)],
        )
        stays = pool.submit(ask, engine, "hello", seed=1)
        assert gone.result() == [None]
        assert stays.result() is not None
    assert ask(engine, "hello", seed=1) == stays.result()
    assert steps < 2 * long.total


def test_an_error_reaches_whoever_asked_and_the_engine_goes_on(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(engine.thinker.sampler, "each", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            ask(engine, "hello")
    assert ask(engine, "hello")
    with monkeypatch.context() as patched:
        patched.setattr(engine.thinker, "judge", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.judge(["hello"])
    assert engine.judge(["hello"])


def test_a_prompt_must_fit(engine: TransformersEngine) -> None:
    with pytest.raises(DataError, match="shorten it"):
        engine.judge(["x" * 600])
    with pytest.raises(DataError, match="shorten it"):
        ask(engine, "x" * 480)
    assert engine.prompt_tokens("xx") == engine.prompt_tokens("x") + 1


def test_a_closed_engine_says_so() -> None:
    made = TransformersEngine(local_thinker(Decision.ALLOW), name="tiny")
    made.close()
    with pytest.raises(AegisError, match="closed"):
        made.judge(["hello"])


def test_a_whole_server_around_a_tiny_model(engine: TransformersEngine, tmp_path: Path) -> None:
    made = house(tmp_path, engine, canary=False, section_tokens=6, seed=7, final_tokens=20)
    with made.client() as client:
        first = client.post("/think", json={"query": "hello"}).json()
        again = client.post("/think", json={"query": "hello"}).json()
        streamed = client.post("/think", json={"query": "hello", "stream": True}).text
        short = client.post("/think", json={"query": "hello", "max_new_tokens": 1}).json()
    assert {**first, "id": ""} == {**again, "id": ""}
    assert first["final"] in (entry.final for entry in made.audit.entries)
    assert first["final"]
    assert short["final"]
    assert '"final":' in streamed.split("event: answer")[1]
    private = [text.reveal() for entry in made.audit.entries for text in entry.sections.values()]
    assert len(private) == 16
    assert not [text for text in private if len(text) > 3 and text in str(first) + streamed]
