"""What verbs print: JSON for programs, one table for people, progress lines on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from aegis.inputs.text import escaped

_MAIN_METRICS = ("accuracy", "validation_accuracy", "validation_loss", "reward_last", "kl_last")

if TYPE_CHECKING:
    from aegis.runs.events import Reporter


def echo(text: str, *, err: bool = False) -> None:
    """Print text for people."""
    typer.echo(escaped(text), err=err)


def print_document(text: str) -> None:
    """Print a text that is a result of its own: as it is into a pipe or a file."""
    sys.stdout.write(escaped(text) if sys.stdout.isatty() else text)


def print_json(value: Any) -> None:
    """Print the value as JSON on stdout, nothing else."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def print_result(as_json: bool, value: Any, *lines: str) -> None:
    """Print the value as JSON, or else the lines."""
    if as_json:
        print_json(value)
    else:
        echo("\n".join(lines))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None
) -> None:
    """Print a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title and escaped(title), title_justify="left")
    for column in columns:
        table.add_column(escaped(column), overflow="fold")  # a key or a path is never cut off
    for row in rows:
        table.add_row(*map(escaped, row))
    Console(highlight=False, markup=False).print(table)


def short(value: Any) -> str:
    """Return a number with four digits that count; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main_metrics(metrics: dict[str, Any]) -> str:
    """Return the metrics of a training step that matter, at most five; --json has all."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    shown = [name for name in _MAIN_METRICS if name in numbers] or [*numbers][:5]
    return ", ".join(f"{name} {short(numbers[name])}" for name in shown)


def print_note(line: str) -> None:
    """Print one line of progress on stderr."""
    print("· " + escaped(line).replace("\n", "\\n"), file=sys.stderr, flush=True)


def progress_reporter() -> Reporter:
    """Return a reporter that prints a run's messages as notes."""
    from aegis.runs.events import Event, LogMessage, Reporter

    def show(event: Event) -> None:
        if isinstance(event, LogMessage):
            print_note(event.text)

    return Reporter(show)
