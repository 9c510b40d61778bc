"""The report of a summary: what every model scored, over which files, and which gave nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aegis import __version__
from aegis.evaluate.charts import draw_models, draw_scores
from aegis.evaluate.page import Page, Section
from aegis.evaluate.summary import Cell, Spread, Summary
from aegis.storage.artifact import writing
from aegis.storage.files import fingerprint, to_json

COLUMNS = ("model", "task", "metric", "value", "interval", "n", "files")
SPREAD_COLUMNS = ("task", "metric", "models", "mean", "deviation", "least", "greatest", "highest")


def cells(cell: Cell) -> tuple[str, ...]:
    """Return a row of the summary as it is shown."""
    interval = "" if cell.interval is None else f"[{cell.interval[0]:.4g}, {cell.interval[1]:.4g}]"
    count = "" if cell.n is None else f"{cell.n:,}"
    shown = (f"{cell.value:.4g}", interval, count, str(cell.files))
    return cell.model, cell.task, cell.metric, *shown


def spread_cells(spread: Spread) -> tuple[str, ...]:
    """Return a task's statistics over the models as they are shown."""
    numbers = (spread.mean, spread.deviation, spread.least, spread.greatest)
    shown = (str(spread.models), *(f"{number:.4g}" for number in numbers))
    return spread.task, spread.metric, *shown, spread.highest


def summary_page(summary: Summary, figures: Sequence[Path] = ()) -> Page:
    """Return the report."""
    files = [(name, str(count)) for name, count in summary.formats.items()]
    read, bad = sum(summary.formats.values()), len(summary.bad)
    models = len({cell.model for cell in summary.cells})
    lead = f"{read:,} files of {len(files)} formats: {len(summary.cells):,} figures of {models:,} "
    lead += f"models. {bad:,} files gave nothing."
    spreads = [spread_cells(spread) for spread in summary.spreads if spread.models > 1]
    sections = [
        Section("Formats", columns=("format", "files"), rows=files),
        Section("Every figure", "", figures, COLUMNS, [cells(cell) for cell in summary.cells]),
        Section("Over the models", columns=SPREAD_COLUMNS, rows=spreads),
        Section("Files that gave nothing", lines=[f"{p}: {r}" for p, r in summary.bad.items()]),
    ]
    shown = [section for section in sections if section.rows or section.lines]
    return Page("Results", [lead], [*shown, Section("Made with", f"AEGIS {__version__}")])


def write_summary(folder: Path, summary: Summary) -> None:
    """Write `summary.json`, both reports and the figures as one artifact."""
    content = to_json(summary.to_json())
    with writing(folder, kind="summary", fingerprint=fingerprint(content)) as staging:
        place = staging / "figures"
        figures = [*draw_models(place, summary.cells), *draw_scores(place, summary.cells)]
        page = summary_page(summary, figures)
        (staging / "summary.json").write_text(content, encoding="utf-8")
        (staging / "report.md").write_text(page.markdown(), encoding="utf-8")
        (staging / "report.html").write_text(page.html(), encoding="utf-8")
