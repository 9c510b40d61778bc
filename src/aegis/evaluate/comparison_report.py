"""The report of a comparison: the sentence first, then every test with its interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from aegis.evaluate.charts import draw_changes, draw_heat_map, draw_waterfall
from aegis.evaluate.compare import Change, Comparison
from aegis.evaluate.page import Page, Section
from aegis.storage.artifact import writing
from aegis.storage.files import fingerprint, to_json

COLUMNS = (
    "task",
    "n",
    "base",
    "candidate",
    "Δ points",
    "interval",
    "Holm p",
    "gained / lost",
    "finds from",
    "verdict",
)
SHORT_COLUMNS = ("task", "n", "base → candidate", "Δ points", "Holm p", "verdict")
_COMPARISON = TypeAdapter(Comparison)
_DETAILS = ("task", "test", "relative", "p", "BH p", "paired t p", "McNemar p", "bootstrap")
_DETAILS += ("p of non-inferiority", "needs items")


def cells(row: Change, *, paired_models: bool) -> tuple[str, ...]:
    """Return a test as it is shown in a table; the models stand before the task if asked for."""
    test = row.paired
    return (
        _name(row, paired_models),
        f"{test.n:,}" + (f" in {test.clusters:,} clusters" if test.clusters else ""),
        f"{100 * test.base:.1f}",
        f"{100 * test.candidate:.1f}",
        f"{test.delta_points:+.2f}",
        _interval(test.interval_points),
        f"{row.p_holm:.2g}",
        f"{test.gained:,} / {test.lost:,}",
        "—" if test.mde_points is None else f"{test.mde_points:.1f}",
        row.verdict,
    )


def short_cells(row: Change, *, paired_models: bool) -> tuple[str, ...]:
    """Return a test as it is shown in a terminal."""
    name, n, base, candidate, delta, interval, p, *_ = cells(row, paired_models=paired_models)
    n, change = n.partition(" ")[0], f"{delta} {interval}"
    return name, n, f"{base} → {candidate}", change, p, row.verdict


def comparison_page(comparison: Comparison, figures: Sequence[Path] = ()) -> Page:
    """Return the report; `figures` are those of the tasks and, last, of the categories."""
    return Page("Comparison", comparison.sentences, [*_sections(comparison, figures)])


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write `comparison.json`, both reports and the figures as one artifact."""
    content, first = to_json(comparison.to_json()), comparison.models[0]["name"]
    with writing(folder, kind="comparison", fingerprint=fingerprint(content)) as staging:
        place = staging / "figures"
        figures = draw_changes(place, comparison.tasks, comparison.criteria)
        for overall in comparison.overall:
            if overall.base == first:
                figures += draw_waterfall(place, overall, comparison.tasks)
        if comparison.categories:
            figures += draw_heat_map(place, comparison.categories)
        elif len(comparison.tasks) > 1:
            figures += draw_heat_map(place, comparison.tasks)
        page = comparison_page(comparison, figures)
        (staging / "comparison.json").write_text(content, encoding="utf-8")
        (staging / "report.md").write_text(page.markdown(), encoding="utf-8")
        (staging / "report.html").write_text(page.html(), encoding="utf-8")


def read_comparison(path: Path) -> Comparison | None:
    """Read a `comparison.json`; None where there is none."""
    return _COMPARISON.validate_json(path.read_bytes()) if path.is_file() else None


def _sections(comparison: Comparison, figures: Sequence[Path]) -> Iterator[Section]:
    criteria, several = comparison.criteria, len(comparison.models) > 2
    cover = f"{100 * (1 - criteria.alpha):g} %"
    if comparison.ranking:
        ranks = [(str(r.rank), r.model, f"{100 * r.score:.1f}") for r in comparison.ranking]
        told = "Equal ranks: chance may have made the difference."
        yield Section("Ranking", told, columns=("rank", "model", "mean of tasks"), rows=ranks)
    margin = f"{criteria.margin:g} point{'' if criteria.margin == 1 else 's'}"
    text = (
        f"Margin {margin}, α = {criteria.alpha:g}; intervals cover with {cover}. "
        "“Finds from” is the smallest change that the test finds in four of five cases."
    )
    grid = [path for path in figures if path.stem == "categories"]
    yield _tests("Tasks", text, [path for path in figures if path not in grid], comparison.tasks)
    if grid or comparison.categories:
        title = "Categories" if comparison.categories else "Tasks by pair"
        grey = "Grey: not significant after Holm's correction. Empty: nothing that can be tested."
        yield _tests(title, grey, grid, comparison.categories)
    rows = [_details(row, several) for row in comparison.tasks]
    yield Section("Every test of the tasks", columns=_DETAILS, rows=rows)
    if comparison.overall:
        columns = ("pair", "Δ points", "interval", "p", "Holm p")
        means = [
            (
                f"{part.candidate} − {part.base}",
                f"{part.delta_points:+.2f}",
                _interval(part.interval_points),
                f"{part.p:.2g}",
                f"{part.p_holm:.2g}",
            )
            for part in comparison.overall
        ]
        yield Section("Mean of the tasks", columns=columns, rows=means)
    if said := [*comparison.notes, *comparison.left_out]:
        yield Section("Left out", lines=said)
    models = [(m["name"], m["folder"], m["content"][:16]) for m in comparison.models]
    environment = ", ".join(f"{name} {value}" for name, value in comparison.environment.items())
    columns = ("model", "folder", "content hash")
    yield Section("What was compared", environment, columns=columns, rows=models)


def _tests(title: str, text: str, figures: Sequence[Path], rows: Sequence[Change]) -> Section:
    several = len({(row.base, row.candidate) for row in rows}) > 1
    shown = [cells(row, paired_models=several) for row in rows]
    return Section(title, text, figures, COLUMNS, shown, [row.verdict for row in rows])


def _details(row: Change, several: bool) -> tuple[str, ...]:
    test = row.paired
    return (
        _name(row, several),
        test.test,
        "—" if test.relative is None else f"{100 * test.relative:+.1f} %",
        f"{test.p:.2g}",
        f"{row.p_bh:.2g}",
        "—" if test.p_t is None else f"{test.p_t:.2g}",
        "—" if test.p_mcnemar is None else f"{test.p_mcnemar:.2g}",
        _interval(test.bootstrap_points),
        f"{test.p_noninferior:.2g}",
        f"{test.needed:,}",
    )


def _name(row: Change, several: bool) -> str:
    name = f"{row.task}: {row.category}" if row.category else row.task
    return f"{row.candidate} − {row.base}: {name}" if several else name


def _interval(ends: tuple[float, float]) -> str:
    return f"[{ends[0]:+.2f}, {ends[1]:+.2f}]"
