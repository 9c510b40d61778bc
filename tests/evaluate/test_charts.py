from __future__ import annotations

from pathlib import Path

import numpy as np

from aegis.evaluate.charts import draw_changes, draw_heat_map, draw_models, draw_scores
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


def test_what_no_share_is_stays_out(tmp_path: Path) -> None:
    speed = Cell("m", "pp512", "tokens/s", 100.0, None, (99.0, 101.0), 1)
    assert draw_scores(tmp_path, [speed]) == draw_models(tmp_path, [speed]) == []
    share = Cell("m", "arc", "acc", 0.5, 10, (0.2, 0.8), 1)
    other = Cell("k", "arc", "acc", float(np.float64(0.5)), 10, None, 1)
    assert [path.name for path in draw_scores(tmp_path, [speed, share])] == ["scores.png"]
    assert [path.name for path in draw_models(tmp_path, [share, other])] == ["models.png"]
