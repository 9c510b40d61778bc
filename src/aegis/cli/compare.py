"""aegis compare: did it get worse?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis.cli.options import INPUT, OUTPUT_FOLDER, AsJson, number
from aegis.cli.show import echo, print_json, print_note, print_table

_RESULTS = "Results of models, the base first; a run's folder holds a pair."
_OUTPUT = "Folder for report.html, report.md, comparison.json and the figures."
_MARGIN = "Points; a smaller loss counts as none."
_ALPHA = "Of the tests, after Holm's correction for their number."


def compare(
    results: Annotated[list[Path], typer.Argument(help=_RESULTS, callback=INPUT)],
    output: Annotated[Path, typer.Option("-o", "--output", help=_OUTPUT, callback=OUTPUT_FOLDER)],
    margin: Annotated[float, number(help=_MARGIN, least=0.01, most=100)] = 1.0,
    alpha: Annotated[float, number(help=_ALPHA, least=0.0001, most=0.5)] = 0.05,
    json: AsJson = False,
) -> None:
    """Compare models item by item: what got worse, what held, what cannot be told.

    Takes what evaluate benchmarks, evaluate decisions and run leave. The tests are exact McNemar,
    or a t-test over clusters; a score has held only if its interval shows that.
    """
    from aegis.storage.artifact import require_output

    require_output(output, kind="comparison", inputs=results)

    from aegis.evaluate.compare import Criteria, compare_models
    from aegis.evaluate.comparison_report import SHORT_COLUMNS, short_cells, write_comparison
    from aegis.evaluate.outcomes import load_models

    comparison = compare_models(load_models(results), Criteria(margin, alpha))
    write_comparison(output, comparison)
    if json:
        print_json(comparison.to_json())
        return
    for line in (*comparison.notes, *comparison.left_out):
        print_note(line)
    several = len(comparison.models) > 2
    rows = [short_cells(row, paired_models=several) for row in comparison.tasks]
    print_table(SHORT_COLUMNS, rows)
    echo("\n".join(comparison.sentences))
    echo(f"report  {output / 'report.html'}")
