"""Pictures of comparisons and summaries, as PNG and SVG: colours of Okabe and Ito, which people who
are colour-blind tell apart, and a shape for each meaning beside the colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from aegis.evaluate.compare import Change, Criteria, Overall, Verdict
from aegis.evaluate.summary import Cell

_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#888888"
_STYLES: dict[Verdict, tuple[str, str]] = {
    "worse": (_ORANGE, "v"),
    "better": (_BLUE, "^"),
    "held": (_GREEN, "s"),
    "cannot tell": (_GREY, "o"),
}
_WIDTH, _ROW, _MOST_ROWS, _MOST_COLUMNS, _NAME = 6.4, 0.32, 60, 12, 34


def draw_changes(folder: Path, rows: Sequence[Change], criteria: Criteria) -> list[Path]:
    """Draw the change on each task with its interval, the margin shaded."""
    rows = rows[:_MOST_ROWS]
    figure, axes = _figure(len(rows))
    axes.axvspan(-criteria.margin, criteria.margin, color="#eeeeee", zorder=0)
    axes.axvline(0, color="black", linewidth=0.8)
    for verdict, (color, marker) in _STYLES.items():
        places = [place for place, row in enumerate(rows) if row.verdict == verdict]
        if places:
            values = np.array([rows[place].delta_points for place in places])
            ends = np.array([rows[place].paired.interval_points for place in places])
            reach = np.abs(ends - values[:, None]).T
            bars = {"xerr": reach, "fmt": marker, "color": color, "capsize": 3, "label": verdict}
            axes.errorbar(values, places, **bars)
    several = len({(row.base, row.candidate) for row in rows}) > 1
    names = [f"{row.candidate} − {row.base}: {row.task}" if several else row.task for row in rows]
    _name_rows(axes, names)
    axes.set_xlabel(f"change in points, {100 * (1 - criteria.alpha):g} % intervals")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return _save(figure, folder / "changes")


def draw_heat_map(folder: Path, rows: Sequence[Change]) -> list[Path]:
    """Draw the change by category and pair; what is not significant is grey."""
    pairs = list(dict.fromkeys((row.base, row.candidate) for row in rows))[:_MOST_COLUMNS]
    several = len({row.task for row in rows}) > 1
    names = list(dict.fromkeys(_category(row, several) for row in rows))[:_MOST_ROWS]
    values = np.full((len(names), len(pairs)), np.nan)
    significant = np.zeros_like(values, dtype=bool)
    for row in rows:
        name = _category(row, several)
        if (row.base, row.candidate) in pairs and name in names:
            place = names.index(name), pairs.index((row.base, row.candidate))
            values[place] = row.delta_points
            significant[place] = row.verdict in ("worse", "better")
    columns = [f"{candidate} − {base}" for base, candidate in pairs]
    return _draw_grid(folder / "categories", values, significant, names, columns)


def draw_waterfall(folder: Path, overall: Overall, changes: Sequence[Change]) -> list[Path]:
    """Draw how the tasks' changes lead from the base's mean to the candidate's, worst first; a
    task without a difference has no bar and counts in the mean."""
    base, candidate, start = overall.base, overall.candidate, overall.base_points
    rows = [row for row in changes if (row.base, row.candidate) == (base, candidate)]
    rows = [row for row in rows if row.task in overall.tasks]
    rows = sorted(rows, key=lambda row: row.delta_points)[:_MOST_ROWS]
    steps = np.array([row.delta_points for row in rows]) / len(overall.tasks)
    begins = start + np.concatenate([[0.0], np.cumsum(steps)[:-1]])
    figure, axes = _figure(len(rows) + 2)
    significant = [row.verdict in ("worse", "better") for row in rows]
    colors = [
        (_ORANGE if step < 0 else _BLUE) if sure else _GREY
        for step, sure in zip(steps, significant, strict=True)
    ]
    places = range(1, len(rows) + 1)
    axes.barh(places, steps, left=begins, color=colors)
    for place, begin, step in zip(places, begins, steps, strict=True):
        axes.text(max(begin, begin + step), place, f" {step:+.2f}", va="center", fontsize=8)
    ends = [start, start + float(steps.sum())]
    axes.barh([0, len(rows) + 1], ends, color="#444444")
    low, high = min(*ends, *begins), max(*ends, *begins)
    pad = max(0.2 * (high - low), 0.5)
    axes.set_xlim(max(low - pad, 0), high + pad)
    _name_rows(axes, [base, *(row.task for row in rows), candidate])
    axes.set_xlabel("mean of the tasks in points; grey: chance may have made it")
    return _save(figure, folder / f"waterfall_{_file_name(candidate)}")


def draw_scores(folder: Path, cells: Sequence[Cell]) -> list[Path]:
    """Draw the values that have an interval, of shares only."""
    cells = [cell for cell in cells if cell.interval and 0 <= cell.value <= 1][:_MOST_ROWS]
    if not cells:
        return []
    figure, axes = _figure(len(cells))
    values = np.array([cell.value for cell in cells])
    ends = np.array([cell.interval for cell in cells])
    reach = np.abs(ends - values[:, None]).T
    axes.errorbar(values, range(len(cells)), xerr=reach, fmt="o", color=_BLUE, capsize=3)
    _name_rows(axes, [f"{cell.model}: {cell.task} {cell.metric}" for cell in cells])
    axes.set_xlabel("value with its interval")
    return _save(figure, folder / "scores")


def draw_models(folder: Path, cells: Sequence[Cell]) -> list[Path]:
    """Draw tasks by models, of shares only."""
    cells = [cell for cell in cells if 0 <= cell.value <= 1]
    models = list(dict.fromkeys(cell.model for cell in cells))[:_MOST_COLUMNS]
    tasks = list(dict.fromkeys((c.task, c.metric) for c in cells if c.model in models))[:_MOST_ROWS]
    if not tasks or len(models) < 2:
        return []
    values = np.full((len(tasks), len(models)), np.nan)
    for cell in cells:
        if cell.model in models and (cell.task, cell.metric) in tasks:
            values[tasks.index((cell.task, cell.metric)), models.index(cell.model)] = cell.value
    names = [f"{task} {metric}" for task, metric in tasks]
    means = np.nanmean(values, axis=1, keepdims=True)
    return _draw_grid(folder / "models", values, np.isfinite(values), names, models, means)


def _draw_grid(
    stem: Path,
    values: np.ndarray,
    coloured: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    centre: np.ndarray | float = 0.0,
) -> list[Path]:
    """Draw values as coloured cells, from orange below the centre to blue above; grey elsewhere."""
    figure, axes = _figure(len(rows) + 3)
    offsets = values - centre
    most = float(np.nanmax(np.abs(offsets), initial=1e-9))
    axes.set_facecolor("white")
    axes.imshow(np.where(np.isfinite(values), 0.5, np.nan), cmap="Greys", vmin=0, vmax=2.5)
    shown = np.where(coloured, offsets, np.nan)
    axes.imshow(shown, cmap="PuOr", vmin=-most, vmax=most, aspect="auto")
    for (place, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = coloured[place, column] and abs(offsets[place, column]) > 0.6 * most
            text = f"{value:+.1f}" if isinstance(centre, float) else f"{value:.2f}"
            color = "white" if dark else "black"
            axes.text(column, place, text, ha="center", va="center", color=color, fontsize=8)
    _name_rows(axes, rows)
    axes.set_xticks(
        range(len(columns)), [_short(name) for name in columns], rotation=30, ha="right"
    )
    return _save(figure, stem)


def _category(row: Change, several_tasks: bool) -> str:
    if row.category and several_tasks:
        return f"{row.task}: {row.category}"
    return row.category or row.task


def _figure(rows: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_WIDTH, 1.6 + _ROW * rows), layout="constrained")
    return figure, figure.subplots()


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    """Name the rows from top to bottom."""
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _short(name: str) -> str:
    shown = name.replace("$", r"\$")  # no mathematics in names
    return shown if len(shown) <= _NAME else f"…{shown[-_NAME:]}"


def _file_name(name: str) -> str:
    return "".join(mark if mark.isalnum() or mark in ".-" else "_" for mark in name)[:60]


def _save(figure: Figure, stem: Path) -> list[Path]:
    """Write PNG and SVG; return the PNG."""
    stem.parent.mkdir(exist_ok=True)
    figure.savefig(stem.with_name(f"{stem.name}.svg"), metadata={"Date": None})
    path = stem.with_name(f"{stem.name}.png")
    figure.savefig(path, dpi=130)
    return [path]
