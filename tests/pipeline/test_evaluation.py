"""The steps that measure: what they skip, what they keep when killed, and what they compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aegis.config import Config, parse_config
from aegis.evaluate.benchmarks.run import evaluate_task
from aegis.evaluate.outcomes import load_models
from aegis.pipeline import evaluation
from aegis.runs.events import Event, LogMessage, Reporter
from aegis.storage.journal import Journal
from tests.conftest import tiny_model
from tests.evaluate.test_outcomes import DECISIONS, save_decisions


def test_a_model_that_was_judged_before_the_kill_is_not_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(model: Path, **_: Any) -> str:
        if model.name == "candidate" and len(loaded) < 2:
            loaded.append("killed")
            raise KeyboardInterrupt
        loaded.append(model.name)
        return model.name

    monkeypatch.setattr(evaluation.Judge, "load", load)
    monkeypatch.setattr(evaluation, "evaluate_decisions", lambda judge, *_, **__: {"judge": judge})
    context = SimpleNamespace(config=Config(), reporter=Reporter())

    def judge_both() -> list[Any]:
        journal = Journal(tmp_path / "j.jsonl")
        given = cast("Any", context)
        models = [tmp_path / name for name in ("base", "candidate")]
        return [evaluation._judged(given, model.name, model, [], journal) for model in models]

    with pytest.raises(KeyboardInterrupt):
        judge_both()
    assert judge_both() == [{"judge": "base"}, {"judge": "candidate"}]
    assert loaded == ["base", "killed", "candidate"]


@pytest.mark.parametrize(
    ("settings", "limit", "reason"),
    [
        ({}, 2048, None),
        ({"questions": 0}, 2048, "evaluate.questions is 0"),
        ({"question_language": "all"}, 300, "and the model reads 300"),
    ],
)
def test_questions_are_left_out_where_none_is_wanted_or_fits(
    settings: dict[str, Any], limit: int, reason: str | None, tokenizer: Any
) -> None:
    base = SimpleNamespace(
        load_tokenizer=lambda: tokenizer,
        read_config=lambda: tiny_model(max_position_embeddings=limit).config,
    )
    context = SimpleNamespace(config=parse_config({"evaluate": settings}, where="t"), base=base)
    told = evaluation._cannot_answer(cast("Any", context))
    assert (reason or "None") in str(told)


class Run:
    """What a step sees of a run whose base and candidate are two folders."""

    def __init__(self, folder: Path, base: Path, candidate: Path, **settings: Any) -> None:
        from aegis.model.base import ModelFolder

        self.said: list[str] = []

        def hear(event: Event) -> None:
            if isinstance(event, LogMessage):
                self.said.append(event.text)

        (folder / "unfinished").mkdir(parents=True)
        source: Any = ModelFolder(base)
        object.__setattr__(source, "__class__", type("Base", (ModelFolder,), {"spec": "a base"}))
        object.__setattr__(source, "fingerprint", "f" * 64)
        self.context: Any = SimpleNamespace(
            config=parse_config({"evaluate": settings}, where="t"),
            base=source,
            artifact=lambda name: candidate if name == "model" else folder / name,
            contents={"benchmarks": {}},
            reporter=Reporter(hear),
            interrupt=SimpleNamespace(check=lambda: None),
            unfinished=folder / "unfinished",
            step="benchmarks",
            fingerprint="0" * 64,
        )


def test_both_are_asked_the_shipped_items_and_none_twice_after_a_kill(
    tmp_path: Path, save_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, candidate = (save_base("llama", num_hidden_layers=n) for n in (1, 2))
    run = Run(tmp_path / "run", base, candidate, benchmark_items=4)
    asked: list[str] = []

    def killed_at_the_sixth(evaluation_: Any, model: Any, *rest: Any) -> Any:
        if len(asked) == 5:
            asked.append("killed")
            raise KeyboardInterrupt
        result = evaluate_task(evaluation_, model, *rest)
        asked.append(f"{model.name} {result.task.name}")
        return result

    monkeypatch.setattr(evaluation, "evaluate_task", killed_at_the_sixth)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with pytest.raises(KeyboardInterrupt):
        evaluation._benchmark(run.context, tmp_path / "first")
    loaded: list[str] = []
    name_source = evaluation.name_source

    def named(source: Any, name: str, *rest: Any, **more: Any) -> Any:
        found = name_source(source, name, *rest, **more)
        return type(found)(found.info, lambda: loaded.append(name) or found.load())

    monkeypatch.setattr(evaluation, "name_source", named)
    evaluation._benchmark(run.context, tmp_path / "second")
    assert loaded == ["candidate"]  # all of the base's items were there
    models = load_models([tmp_path / "second"])
    assert [model.name for model in models] == ["base", "candidate"]
    assert all(len(task.items) == 4 for model in models for task in model.tasks.values())
    assert set(models[0].tasks) == set(evaluation.SHIPPED)
    assert evaluation._no_benchmarks(run.context) is None
    none = Run(tmp_path / "none", base, candidate, benchmark_items=0)
    assert "benchmark_items is 0" in str(evaluation._no_benchmarks(none.context))


def test_decisions_and_benchmarks_are_compared_in_one_family(
    tmp_path: Path, save_base: Callable[..., Path]
) -> None:
    base, candidate = (save_base("llama", num_hidden_layers=n) for n in (1, 2))
    run = Run(tmp_path, base, candidate, benchmark_items=30, margin=3.5, confidence=0.9)
    results = tmp_path / "results"
    for name in ("benchmarks", "results"):
        (tmp_path / name).mkdir()
    evaluation._benchmark(run.context, tmp_path / "benchmarks")
    save_decisions(results / "base", DECISIONS)
    better = [(name, truth, truth) for name, truth, _ in DECISIONS]
    save_decisions(results / "candidate", better)
    comparison = evaluation._compared(run.context, results)
    assert comparison
    tasks = {row.task for row in comparison.tasks}
    assert "decisions" in tasks
    assert tasks & set(evaluation.SHIPPED)
    assert (comparison.criteria.margin, comparison.criteria.alpha) == (3.5, 0.1)
    assert run.said[-1] == comparison.sentences[-1]
    written = json.loads((results / evaluation.COMPARISON_FILE).read_text(encoding="utf-8"))
    assert written["sentences"] == comparison.sentences
    save_decisions(results / "base", [("a", "DENY", "DENY")] * 1)
    assert evaluation._compared(run.context, results) is None
    assert "are not compared: " in run.said[-1]
