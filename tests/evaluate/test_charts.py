from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aegis.evaluate.charts import (
    draw_changes,
    draw_heat_map,
    draw_models,
    draw_scores,
    draw_waterfall,
)
from aegis.evaluate.compare import compare_models
from aegis.evaluate.summary import Cell
from tests.evaluate.test_compare import model, outcomes, scores


def test_names_that_are_long_or_odd_and_many_rows_are_drawn(tmp_path: Path) -> None:
    base, new = scores(400, 0.6), scores(400, 0.6, flips=0.2)
    tasks = [f"$x_{number}$" + "long" * 20 for number in range(70)]
    comparison = compare_models(
        [
            model("base", **{name: outcomes(base) for name in tasks}),
            model("n/e w", **{name: outcomes(new) for name in tasks}),
        ]
    )
    (path,) = draw_changes(tmp_path, comparison.tasks, comparison.criteria)
    assert path.with_suffix(".svg").read_text(encoding="utf-8").count("worse") >= 1
    assert draw_heat_map(tmp_path, comparison.tasks) == [tmp_path / "categories.png"]


def test_categories_of_one_name_in_two_tasks_are_two_rows(tmp_path: Path) -> None:
    base = scores(400, 0.6)
    changed = {"one": scores(400, 0.6, flips=0.2), "two": scores(400, 0.6, flips=0.9)}
    comparison = compare_models(
        [
            model("base", **{name: outcomes(base, categories=2) for name in changed}),
            model("new", **{name: outcomes(new, categories=2) for name, new in changed.items()}),
        ]
    )
    (path,) = draw_heat_map(tmp_path, comparison.categories)
    drawn = path.with_suffix(".svg").read_text(encoding="utf-8")
    assert len(comparison.categories) == 4
    for row in comparison.categories:
        assert f"{row.task}: {row.category}" in drawn
        assert f"{row.delta_points:+.1f}" in drawn


def test_a_waterfall_ends_at_the_mean_of_all_tasks(tmp_path: Path) -> None:
    base, new, third = scores(400, 0.5), scores(400, 0.5, flips=0.2), scores(400, 0.5, flips=0.4)
    tasks = {"a": (base, new), "b": (base, third), "same": (base, base)}
    comparison = compare_models(
        [
            model(name, **{task: outcomes(pair[side]) for task, pair in tasks.items()})
            for side, name in enumerate(("base", "new"))
        ]
    )
    (overall,) = comparison.overall
    assert overall.base_points == pytest.approx(100 * base.mean())
    (path,) = draw_waterfall(tmp_path, overall, comparison.tasks)
    drawn = path.with_suffix(".svg").read_text(encoding="utf-8")
    steps = [row.delta_points / 3 for row in comparison.tasks]
    assert len(steps) == 2
    assert sum(steps) == pytest.approx(overall.delta_points)
    assert all(f" {step:+.2f}" in drawn for step in steps)


def test_what_no_share_is_stays_out(tmp_path: Path) -> None:
    speed = Cell("m", "pp512", "tokens/s", 100.0, None, (99.0, 101.0), 1)
    assert draw_scores(tmp_path, [speed]) == draw_models(tmp_path, [speed]) == []
    share = Cell("m", "arc", "acc", 0.5, 10, (0.2, 0.8), 1)
    other = Cell("k", "arc", "acc", float(np.float64(0.5)), 10, None, 1)
    assert [path.name for path in draw_scores(tmp_path, [speed, share])] == ["scores.png"]
    assert [path.name for path in draw_models(tmp_path, [share, other])] == ["models.png"]
