"""Progress on stderr: a bar where a person looks on, a line a minute where the output is piped or
logged; and to the reporter of the run that it is part of."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar

from aegis.runs.events import Progress, Reporter

Advance = Callable[..., None]
LINE_EVERY_S = 60.0
_reporters: list[Reporter] = []


@contextlib.contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """While entered, every bar emits its `Progress` to this reporter; the innermost counts."""
    _reporters.append(reporter)
    try:
        yield
    finally:
        _reporters.remove(reporter)


@contextlib.contextmanager
def bar(label: str, total: int, *, done: int = 0, stoppable: bool = True) -> Iterator[Advance]:
    """Yield `advance(count=1, note="")`, which moves on from `done` and shows the note beside it.

    Args:
        stoppable: the work may be left at any advance; False where something must be saved first.
    """
    with _console(label, total, done) as show:
        position = done

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal position
            position += count
            event = Progress(
                label=label, done=position, total=total, note=note, stoppable=stoppable
            )
            show(event)
            if _reporters:
                _reporters[-1].emit(event)

        yield advance


@contextlib.contextmanager
def _console(label: str, total: int, done: int) -> Iterator[Callable[[Progress], None]]:
    """Yield what shows progress on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with ProgressBar(*columns, console=console, transient=True) as shown:
        task = shown.add_task(label, total=total, completed=done, note="")
        yield lambda event: shown.update(task, completed=event.done, note=event.note)


class _Lines:
    """A line a minute, with the time that is left."""

    def __init__(self, console: Console, first: int) -> None:
        self.console, self.first = console, first
        self.begun = self.printed_at = time.monotonic()

    def __call__(self, event: Progress) -> None:
        now = time.monotonic()
        if now - self.printed_at < LINE_EVERY_S:
            return
        self.printed_at = now
        pace = (now - self.begun) / max(1, event.done - self.first)
        minutes, seconds = divmod(round(pace * (event.total - event.done)), 60)
        text = f"{event.label} {event.done}/{event.total}, {minutes}:{seconds:02} left {event.note}"
        self.console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)
