"""aegis run: the whole job."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated, Any

import typer

from aegis.cli.notify import Notify
from aegis.cli.options import (
    INPUT,
    AcceptLicence,
    AutoResume,
    ConfigFile,
    Overrides,
    load_settings,
    repeatable,
    tuned_settings,
)
from aegis.cli.show import echo, print_json, print_table, progress_reporter

_SET_FROM = "optimal_hyperparameters.json of `aegis tune`: its settings, before those of --set."
_SKIP_BAD = "Set bad lines of data files aside in rejected.jsonl instead of stopping."


def run(
    config: ConfigFile,
    set_: Overrides = None,
    set_from: Annotated[
        Path | None, typer.Option("--set-from", metavar="FILE", help=_SET_FROM, callback=INPUT)
    ] = None,
    auto_resume: AutoResume = True,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=_SKIP_BAD)] = False,
    accept_licence: AcceptLicence = None,
    notify: Notify = None,
    json: Annotated[bool, typer.Option("--json", help="Print the session record as JSON.")] = False,
) -> None:
    """Take a model from seed data to a folded, certified, evaluated model folder.

    Four stages: deep_research_data, data_cleansing, so8t_ppo_training, aegis_v2_integration.
    Finished stages are skipped when the same command runs again. runs/latest leads to the newest
    session: adapter/, model/, report.html.
    """
    tuned = tuned_settings(set_from) if set_from else []
    overrides = tuned + list(set_ or []) + (["data.skip_bad=true"] if skip_bad else [])
    settings = load_settings(config, overrides)

    from aegis.pipeline import run_pipeline

    session = run_pipeline(
        settings,
        resume=auto_resume,
        reporter=progress_reporter(),
        command=repeatable(["run", str(config)], overrides),  # --no-auto-resume would start anew
    )
    if json:
        print_json(session.to_json())
        return
    _print_results(session.folder / "results", title=f"{session.session_id}: completed")
    for name in ("model", "adapter", "report.html"):
        echo(f"{Path(name).stem:8} {Path(settings.runs) / 'latest' / name}")


def _print_results(folder: Path, *, title: str) -> None:
    """Print decisions of base and candidate, of their peers, and what became of the base."""
    from aegis.evaluate.comparison_report import SHORT_COLUMNS, read_comparison, short_cells
    from aegis.evaluate.judges import JUDGE_COLUMNS, judge_rows
    from aegis.evaluate.report import bound_sentences, comparison_rows

    results = {path.parent.name: path for path in sorted(folder.glob("*/metrics.json"))}
    judged = {name: _read(path) for name, path in results.items()}
    base, candidate = judged.pop("base"), judged.pop("candidate")
    rows = [
        (row.name, f"{row.base} {row.base_interval}", f"{row.candidate} {row.candidate_interval}")
        for row in comparison_rows(base, candidate)
    ]
    print_table(("held-out decisions", "base", "candidate"), rows, title=title)
    judges = judge_rows(base, candidate, list(judged.values()))
    values = [
        (name, *(cell.partition(" ")[0] for cell in row), told) for name, *row, told in judges
    ]
    print_table(JUDGE_COLUMNS, values)
    echo("\n".join(bound_sentences(candidate)))
    if comparison := read_comparison(folder / "comparison.json"):
        changes = [short_cells(row, paired_models=False) for row in comparison.tasks]
        print_table(SHORT_COLUMNS, changes)
        echo("\n".join(comparison.sentences))


def _read(metrics: Path) -> dict[str, Any]:
    """Return the results in a folder, items included."""
    from aegis.data.records import read_rows

    items = read_rows(metrics.parent / "items.jsonl")
    return {**json_.loads(metrics.read_text(encoding="utf-8")), "items": items}
