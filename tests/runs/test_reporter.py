from __future__ import annotations

import pytest

from aegis.runs import reporter as progress
from aegis.runs.events import Event, Progress, Reporter


def test_piped_output_gets_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 45))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar("training", 10, done=2) as advance:
        for step in range(3):
            advance(note=f"loss {step}")
    assert capsys.readouterr().err == "training 4/10, 4:30 left loss 1\n"


def test_a_bar_is_told_to_the_innermost_reporter() -> None:
    outer: list[Event] = []
    inner: list[Event] = []
    with progress.reporting(Reporter(outer.append)):
        with (
            progress.reporting(Reporter(inner.append)),
            progress.bar("a", 3, stoppable=False) as advance,
        ):
            advance(2, "note")
        with progress.bar("b", 1) as advance:
            advance()
    at = inner[0].at
    assert inner == [Progress(at=at, label="a", done=2, total=3, note="note", stoppable=False)]
    assert [(event.label, event.done) for event in outer if isinstance(event, Progress)] == [
        ("b", 1)
    ]
