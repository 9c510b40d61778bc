from __future__ import annotations

from pathlib import Path

import pytest

from aegis.errors import DataError
from aegis.evaluate.results import (
    ItemResult,
    Measure,
    ModelInfo,
    TaskInfo,
    TaskResult,
    by_category,
    load_run,
    load_runs,
    load_task,
    measures_of,
    save_task,
)


def result_of(content: str = "ab" * 32, task: str = "mmlu") -> TaskResult:
    items = tuple(
        ItemResult(
            category=("law", "virology")[number % 2],
            doc_id=number,
            doc_hash=f"d{number}",
            target_hash="t",
            prompt_hash=f"p{number}",
            target=number % 4,
            scores={"acc": float(number % 3 == 0)},
            log_probs=(-1.5, -2.0, -0.25, -9.0),
            chosen=2,
        )
        for number in range(10)
    )
    return TaskResult(
        model=ModelInfo("tiny", "some/tiny", content, "hf", "transformers", "float32", ("base",)),
        task=TaskInfo(task, "1.0", 5, "lm_eval 0.4.13", "log-likelihood", "ff", 10),
        n=len(items),
        confidence=0.95,
        created="2026-01-02T03:04:05Z",
        aegis_version="0.1.0",
        environment={"python": "3.11"},
        measures=measures_of(items, 0.95),
        categories=by_category(items, 0.95),
        items=items,
    )


def test_what_is_saved_is_loaded(tmp_path: Path):
    result = result_of()
    path = save_task(tmp_path, result)
    assert load_task(path) == result
    assert set(result.categories) == {"law", "virology"}
    assert result.measures["acc"].n == 10
    assert result.main == "acc"


def test_runs_of_several_models_are_found_by_folder(tmp_path: Path):
    results = [result_of("a" * 64), result_of("b" * 64)]
    for result in results:
        (tmp_path / result.model.folder).mkdir()
        save_task(tmp_path / result.model.folder, result)
    runs = load_runs(tmp_path)
    assert [run.model.content[0] for run in runs] == ["a", "b"]
    assert load_runs(runs[0].folder)[0] == runs[0]
    save_task(runs[0].folder, result_of("b" * 64, "other"))
    with pytest.raises(DataError, match="keep one model's results"):
        load_run(runs[0].folder)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "x"}', "[1]", '{"n": "many"}'])
def test_a_foreign_file_is_refused_by_field(tmp_path: Path, text: str):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"x\.json: "):
        load_task(path)
    with pytest.raises(DataError, match="no such file"):
        load_task(tmp_path / "y.json")
    with pytest.raises(DataError, match="holds no results"):
        load_run(tmp_path / "empty")


def test_intervals():
    exact = Measure.of([1, 0, 1, 1], 0.95)
    assert exact.value == 0.75
    assert exact.interval == pytest.approx((0.19412, 0.99369), abs=1e-4)
    normal = Measure.of([0.5, 0.25, 0.75], 0.95)
    assert normal.interval == pytest.approx((0.5 - 0.28290, 0.5 + 0.28290), abs=1e-4)
    assert Measure.of([0.5], 0.95).interval == (0.5, 0.5)
