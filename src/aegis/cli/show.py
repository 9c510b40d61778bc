"""What verbs print: JSON for programs, one table for people, progress lines on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from aegis.runs.events import Reporter


def print_json(value: Any) -> None:
    """Print the value as JSON on stdout, nothing else."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def print_result(as_json: bool, value: Any, *lines: str) -> None:
    """Print the value as JSON, or else the lines."""
    if as_json:
        print_json(value)
    else:
        typer.echo("\n".join(lines))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None
) -> None:
    """Print a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def print_note(line: str) -> None:
    """Print one line of progress on stderr."""
    print(f"· {line}", file=sys.stderr, flush=True)


def progress_reporter() -> Reporter:
    """Return a reporter that prints a run's messages as notes."""
    from aegis.runs.events import Event, LogMessage, Reporter

    def show(event: Event) -> None:
        if isinstance(event, LogMessage):
            print_note(event.text)

    return Reporter(show)
