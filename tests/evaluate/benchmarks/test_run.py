from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from aegis.engine.scoring import deal
from aegis.engine.transformers_scorer import TransformersScorer
from aegis.errors import AegisError, StoppedError
from aegis.evaluate.benchmarks import run
from aegis.evaluate.benchmarks.models import name_model
from aegis.evaluate.benchmarks.run import ITEMS_FILE, evaluate_models
from aegis.evaluate.benchmarks.store import ItemStore
from aegis.evaluate.benchmarks.tasks import load_benchmark
from aegis.evaluate.results import ItemResult, TaskResult, load_run
from tests.conftest import byte_tokenizer, tiny_model

CASES = [
    ("arc_easy", 0),
    ("hellaswag", 0),
    ("winogrande", 0),
    ("mmlu", 0),
    ("mmlu", 2),
    ("jcommonsenseqa", 0),
    ("gsm8k", 2),
]


@pytest.fixture(scope="module")
def harness_model() -> Any:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = tiny_model("llama", max_position_embeddings=600), byte_tokenizer()
    make: Any = HFLM
    return make(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=600)


@pytest.mark.parametrize(("task", "shots"), CASES)
def test_every_item_is_scored_as_by_the_harness(
    task: str, shots: int, data: Path, harness_model: Any, save_base: Callable[..., Path]
) -> None:
    from lm_eval.api.instance import Instance

    folder = save_base("llama", max_position_embeddings=600)
    limit = 3 if task == "gsm8k" else 12
    benchmark = load_benchmark(task, data=data, shots=shots, limit=limit)
    named = name_model(str(folder))
    result = evaluate_models([named], [benchmark], folder / "results")[0]
    assert len(result.items) == len(benchmark.items) == limit
    for item, ours in zip(benchmark.items, result.items, strict=True):
        if benchmark.writes:
            asked = (item.prompt, {"until": list(item.stops), "do_sample": False})
            request = Instance("generate_until", item.doc, asked, 0)
            text = harness_model.generate_until([request], disable_tqdm=True)[0]
            assert ours.response == text
            continue
        requests = [
            Instance("loglikelihood", item.doc, pair, number)
            for number, pair in enumerate(item.pairs)
        ]
        theirs = harness_model.loglikelihood(requests, disable_tqdm=True)
        assert ours.log_probs == pytest.approx([value for value, _ in theirs], abs=1e-3)
        expected = item.task.process_results(item.doc, theirs)
        assert ours.scores == {name: expected[name] for name in ours.scores}


def test_nothing_is_asked_twice_and_nobody_gets_the_scores_of_another(
    data: Path, tmp_path: Path, save_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    score = TransformersScorer.score

    def counted(self: Any, batch: Any, rows: Any) -> Any:
        asked.append(len(rows))
        return score(self, batch, rows)

    monkeypatch.setattr(TransformersScorer, "score", counted)
    first, second = (name_model(str(save_base("llama", num_hidden_layers=n))) for n in (2, 3))
    small, whole = (load_benchmark("arc_easy", data=data, limit=limit) for limit in (5, None))
    evaluate_models([first], [small], tmp_path)
    assert sum(asked) == 5
    one = evaluate_models([first], [whole], tmp_path)[0]
    assert sum(asked) == 12
    assert evaluate_models([first], [whole], tmp_path)[0].items == one.items
    assert sum(asked) == 12
    other = evaluate_models([second], [whole], tmp_path)[0]
    assert sum(asked) == 24
    assert other.items[0].log_probs != one.items[0].log_probs
    assert load_run(tmp_path / first.info.folder).tasks["arc_easy"].items == one.items


def test_numbers_that_are_not_finite_are_told(
    data: Path, tmp_path: Path, save_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = name_model(str(save_base("llama", num_hidden_layers=1)))
    scorer = named.load()
    scorer.model.lm_head.weight.data.fill_(float("nan"))  # pyright: ignore
    broken = dataclasses.replace(named, load=lambda: scorer)
    with pytest.raises(AegisError, match="not finite"):
        evaluate_models([broken], [load_benchmark("arc_easy", data=data)], tmp_path)


def test_a_stopped_run_ends_as_one_that_was_not(
    data: Path, tmp_path: Path, save_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "deal", partial(deal, batch_tokens=300))
    named = name_model(str(save_base("llama", num_hidden_layers=2)))
    tasks = [load_benchmark(name, data=data, limit=8) for name in ("arc_easy", "mmlu")]
    evaluate_models([named], tasks, tmp_path / "whole")
    add = ItemStore.add
    for most in (1, 3, 2, 100):
        left = [most]

        def stop(*arguments: Any, left: list[int] = left) -> None:
            if not left[0]:
                raise StoppedError("stopped")
            left[0] -= 1
            add(*arguments)

        monkeypatch.setattr(ItemStore, "add", stop)
        with contextlib.suppress(StoppedError):
            evaluate_models([named], tasks, tmp_path / "stopped")
    assert _items(tmp_path / "stopped") == _items(tmp_path / "whole")


def _run(model: str, data: Path, output: Path) -> None:
    run.deal = partial(deal, batch_tokens=1)
    tasks = [load_benchmark(name, data=data) for name in ("arc_easy", "mmlu")]
    evaluate_models([name_model(model)], tasks, output)


@pytest.mark.slow
def test_killed_at_twenty_instants_it_ends_as_one_that_was_not(
    data: Path, tmp_path: Path, save_base: Callable[..., Path]
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lm_eval.api.task", "aegis.evaluate.benchmarks.run"])
    folder = str(save_base("llama", num_hidden_layers=2))

    def started(output: Path) -> Any:
        process = context.Process(target=_run, args=(folder, data, output))
        process.start()
        return process

    whole, rng, kills = tmp_path / "whole", random.Random(7), 0
    started(whole).join(timeout=120)
    begun = time.monotonic()
    started(tmp_path / "again").join(timeout=120)
    longest = time.monotonic() - begun
    expected = _items(whole)
    killed = tmp_path / "killed-0"
    while kills < 20:
        process = started(killed)
        process.join(timeout=rng.uniform(0, longest))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if process.exitcode == 0:
            assert _items(killed) == expected
            killed = tmp_path / f"killed-{kills}"
    started(killed).join(timeout=120)
    assert _items(killed) == expected


def _items(output: Path) -> dict[str, tuple[ItemResult, ...]]:
    (folder,) = (path for path in output.iterdir() if path.is_dir())
    tasks = load_run(folder).tasks
    for result in tasks.values():
        assert _stored(output, result) == len(result.items)
    return {name: result.items for name, result in tasks.items()}


def _stored(output: Path, result: TaskResult) -> int:
    return len(ItemStore(output / ITEMS_FILE).items(result.model, result.task))
