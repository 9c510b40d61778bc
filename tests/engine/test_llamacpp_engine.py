from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aegis.engine.judge import Judge
from aegis.engine.llamacpp_engine import LlamaCppEngine, find_gguf
from aegis.engine.protocol import ThinkRequest
from aegis.engine.response_grammar import Limits, Sampling
from aegis.engine.response_sampler import ResponseSampler
from aegis.engine.verdict import Verdict
from aegis.errors import AegisError, DataError, MissingPackageError, ModelError
from aegis.model.calibration import Calibration, Weights
from aegis.model.heads import DecisionHead, Pooling
from aegis.model.lexical import LexicalHead
from aegis.model.prompt import prompt_ids
from aegis.model.tags import add_tags, known_tags
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import Thinking, compose, looks_like_a_tag, parse
from tests.conftest import byte_tokenizer, tiny_model
from tests.serve.tiny_gguf import write_gguf

pytest.importorskip("cyllama")

PROMPTS = [
    "Hi",
    "人を助けるには",
    "A much longer request than the others, to mix lengths in one batch",
    "x",
    "Where is it?",
]
LIMITS = Limits(section=5, final=8)
SYSTEM = "You decide first, then you answer."


def write_model(
    folder: Path,
    architecture: str = "llama",
    *,
    pooling: Pooling = "last+mean",
    kind: str = "f32",
    **changes: Any,
):
    """A tiny model folder as `aegis fold` leaves it, with its GGUF file; the model is returned
    too."""
    folder.mkdir(parents=True)
    model, tokenizer = tiny_model(architecture, **changes), byte_tokenizer()
    add_tags(tokenizer, model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    head = DecisionHead(model.config.hidden_size, pooling=pooling, system_prompt=SYSTEM)
    torch.nn.init.normal_(head.linear.weight)
    head.scale.uniform_(0.5, 2.0)
    head.mean.normal_()
    head.save(folder)
    (folder / "gguf").mkdir()
    write_gguf(model, tokenizer, folder / "gguf" / f"model-{kind}.gguf", kind=kind)
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
    return engine.think([ThinkRequest(prompt, Decision.DENY, sampling, cancelled)])[0]


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


def test_f16_decides_nearly_alike(tmp_path: Path) -> None:
    write_model(tmp_path / "m", kind="f16")
    engine = LlamaCppEngine.load(tmp_path / "m", threads=1)
    for found, wanted in zip(engine.judge(PROMPTS), judged(tmp_path / "m", PROMPTS), strict=True):
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=0.02)
    engine.close()


def greedy(model: Any, tokenizer: Any, prompt: str) -> Thinking | None:
    ids = prompt_ids(tokenizer, prompt, system=SYSTEM)
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
        prompt_ids(engine.encoder.tokenizer, "x" * 900, system=SYSTEM)
    )
    engine.close()


def test_prompts_must_fit(engine: LlamaCppEngine) -> None:
    with pytest.raises(DataError, match="the model reads 512; shorten it"):
        engine.judge(["Hi", "x" * 500])
    with pytest.raises(DataError, match="shorten it"):
        write(engine, "x" * 460)


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
