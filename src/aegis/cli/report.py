"""aegis report: a folder of results as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis.cli.options import INPUT, OUTPUT_FOLDER, AsJson
from aegis.cli.show import echo, print_json, print_note, print_table

_RESULTS = "Folders with results: ours, lm-eval's, lighteval's, inspect's, llama-bench's."
_OUTPUT = "Folder for report.html, report.md, summary.json and the figures."
_ROWS, _BAD_FILES = 40, 10


def report(
    results: Annotated[list[Path], typer.Argument(help=_RESULTS, callback=INPUT)],
    output: Annotated[Path, typer.Option("-o", "--output", help=_OUTPUT, callback=OUTPUT_FOLDER)],
    json: AsJson = False,
) -> None:
    """Summarise any number of result files, whoever wrote them.

    A file that cannot be read is listed with its reason; the others are summarised all the same.
    """
    from aegis.storage.artifact import require_output

    require_output(output, kind="summary", inputs=results)

    from aegis.evaluate.summary import summarise
    from aegis.evaluate.summary_report import COLUMNS, cells, write_summary

    summary = summarise(results)
    write_summary(output, summary)
    if json:
        print_json(summary.to_json())
        return
    for path, reason in [*summary.bad.items()][:_BAD_FILES]:
        print_note(f"{path}: {reason}")
    if (more := len(summary.bad) - _BAD_FILES) > 0:
        print_note(f"{more} files more that gave nothing in the report")
    files = ", ".join(f"{count} {name}" for name, count in summary.formats.items())
    title = f"{files}; {len(summary.bad)} files gave nothing"
    print_table(COLUMNS, [cells(cell) for cell in summary.cells[:_ROWS]], title=title)
    if (more := len(summary.cells) - _ROWS) > 0:
        echo(f"{more} rows more in the report")
    echo(f"report  {output / 'report.html'}")
