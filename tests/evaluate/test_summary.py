from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aegis.errors import DataError
from aegis.evaluate.summary import summarise
from tests.evaluate.test_foreign import DECISIONS, INSPECT, LIGHTEVAL, LLAMA_BENCH, LM_EVAL
from tests.evaluate.test_outcomes import BASE, save_benchmark

FORMATS = ("lm-eval", "lighteval", "inspect", "llama-bench", "older AEGIS")


def mixed_results(folder: Path, count: int) -> None:
    """Write result files of five formats, each of another model or run."""
    for number in range(count):
        values: tuple[Any, ...] = (
            {**LM_EVAL, "model_name": f"m{number % 7}"},
            {**LIGHTEVAL, "config_general": {"model_name": f"m{number}"}},
            {**INSPECT, "samples": [{"id": n, "input": "x" * 200} for n in range(200)]},
            LLAMA_BENCH,
            {"results": {"mmlu": {"acc": number / count}}, "model": f"m{number}"},
        )
        place = folder / f"run{number % 10}" / f"{number}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(values[number % len(values)]), encoding="utf-8")


def test_many_files_of_five_formats_become_one_summary(tmp_path: Path) -> None:
    mixed_results(tmp_path, 323)
    (tmp_path / "cut.json").write_text('{"results": {')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    begun = time.monotonic()
    summary = summarise([tmp_path])
    assert time.monotonic() - begun < 10
    assert set(summary.formats) == set(FORMATS)
    assert sum(summary.formats.values()) == 323
    assert sorted(Path(path).name for path in summary.bad) == ["cut.json", "deep.json"]
    mmlu = next(spread for spread in summary.spreads if spread.task == "mmlu")
    assert (mmlu.models, mmlu.highest) == (64, "m319")
    assert json.dumps(summary.to_json(), allow_nan=False)


def test_several_files_of_one_figure_are_one_row(tmp_path: Path) -> None:
    for name, value in (("a", 0.4), ("b", 0.6)):
        raw = {"model": "m", "results": {"t": {"acc": value, "n": 50}}}
        (tmp_path / f"{name}.json").write_text(json.dumps(raw))
    (cell,) = summarise([tmp_path]).cells
    assert (cell.value, cell.files, cell.n) == (pytest.approx(0.5), 2, 50)
    assert cell.interval == (0.4, 0.6)


def test_models_of_one_name_are_told_apart_by_content_precision_and_shots(tmp_path: Path) -> None:
    def cells() -> set[tuple[str, str]]:
        return {(cell.model, cell.task) for cell in summarise([tmp_path]).cells}

    save_benchmark(tmp_path / "a", BASE, [1, 0])
    save_benchmark(tmp_path / "b", BASE, [1, 0])
    assert cells() == {("base", "arc_easy")}
    save_benchmark(tmp_path / "c", replace(BASE, content="e" * 64, dtype="float32"), [1, 1])
    save_benchmark(tmp_path / "d", BASE, [1, 1], shots=5)
    alone = ("base bbbbbbbb", "arc_easy")
    assert cells() == {
        alone,
        (alone[0], "arc_easy, 5 shots"),
        ("base eeeeeeee float32", "arc_easy"),
    }
    shutil.rmtree(tmp_path / "c")
    for run in ("one", "two"):
        made = save_benchmark(tmp_path / "made", BASE, [1, 1])
        (tmp_path / run / "benchmarks").mkdir(parents=True)
        made.rename(tmp_path / run / "benchmarks" / "base")
    assert {name for name, _ in cells()} == {"base", "one/base", "two/base"}


def test_an_interval_comes_from_the_file_its_error_or_its_n(tmp_path: Path) -> None:
    for name, raw in (("base/metrics", DECISIONS), ("lm", LM_EVAL), ("in", INSPECT)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps(raw))
    cells = {(cell.task, cell.metric): cell.interval for cell in summarise([tmp_path]).cells}
    assert cells["decisions", "accuracy"] == (0.5, 0.9)
    assert cells["arc_easy", "acc"] == pytest.approx((0.4804, 0.5196))
    assert cells["arc_easy", "acc_norm"] == pytest.approx((0.3315, 0.4715), abs=1e-3)


def test_what_is_no_result_is_passed_over_and_what_never_ends_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "items.jsonl").write_text('{"id": "1"}\n')
    (tmp_path / "lm.json").write_text(json.dumps(LM_EVAL))
    (tmp_path / "bench.jsonl").write_text(json.dumps(LLAMA_BENCH[0]) + "\n")
    parts = ("session.db", "progress_logs/one.json", "checkpoints/a/b.json", "calibration/r.json")
    for name in (f"run/{part}" for part in parts):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "nowhere.json").symlink_to(tmp_path / "gone")
    summary = summarise([tmp_path])
    assert summary.formats == {"llama-bench": 1, "lm-eval": 1}
    reasons = {Path(path).name: why for path, why in summary.bad.items()}
    assert reasons["pipe.json"] == "is a pipe or device"
    assert set(reasons) == {"pipe.json", "nowhere.json"}


def test_a_folder_without_results_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 JSON files and no result; give a folder"):
        summarise([tmp_path])
    (tmp_path / "cut.json").write_text("{")
    with pytest.raises(DataError, match=r"cut\.json: not valid JSON"):
        summarise([tmp_path])
    with pytest.raises(DataError, match="is no folder"):
        summarise([tmp_path / "gone"])
