"""Progress on stderr: a bar where a person looks on, a line a minute where the output is piped or
logged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]
Listener = Callable[[str, int, int, str, bool], None]
LINE_EVERY_S = 60.0


_listeners: list[Listener] = []


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """While entered, every advance of every bar is told: description, done, total, note, stoppable.
    It may raise."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextlib.contextmanager
def bar(
    description: str, total: int, *, done: int = 0, stoppable: bool = True
) -> Iterator[Advance]:
    """Yield `advance(count=1, note="")`, which moves on from `done` and shows the note beside it.

    Args:
        stoppable: the work may be left at any advance; False where something must be saved first.
    """

    def tell(show: Advance) -> Advance:
        position = done

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal position
            position += count
            show(count, note)
            for listener in _listeners:
                listener(description, position, total, note, stoppable)

        return advance

    with _shown(description, total, done) as show:
        yield tell(show)


@contextlib.contextmanager
def _shown(description: str, total: int, done: int) -> Iterator[Advance]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console, description, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")

        def advance(count: int = 1, note: str = "") -> None:
            progress.update(task, advance=count, note=note)

        yield advance


def _lines(console: Console, description: str, total: int, first: int) -> Advance:
    begun = told = time.monotonic()
    done = first

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal done, told
        done += count
        now = time.monotonic()
        if now - told >= LINE_EVERY_S:
            told = now
            left = (now - begun) / max(1, done - first) * (total - done)
            minutes, seconds = divmod(round(left), 60)
            text = f"{description} {done}/{total}, {minutes}:{seconds:02} left {note}"
            console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)

    return advance
