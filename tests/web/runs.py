"""Runs as `aegis run` leaves them, in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aegis.runs.events import EVENTS, Event, Metrics, append_event
from aegis.runs.record import Session, open_session
from aegis.web.run_list import METRICS

STAGES = ("collect", "train")


def new_run(runs: Path, *, fingerprint: str = "a", settings: str = "base: tiny\n") -> Session:
    return open_session(
        runs, config_fingerprint=fingerprint, resume=False, stages=STAGES, settings=settings
    )


def told(session: Session, *events: Event) -> None:
    for event in events:
        append_event(session.folder, event)


def finish(session: Session) -> None:
    for stage in session.stages:
        stage.state = "completed"
    session.stage = "completed"
    session.save()


def judged(session: Session, **changes: Any) -> None:
    rate = {"value": 0.0717, "n": 321, "interval": [0.04, 0.1056]}
    measured = {"macro_f1": {**rate, "value": 0.803}, "miss_rate": rate}
    measured |= {"over_refusal_rate": rate, "confidence": 0.95, **changes}
    path = session.folder / METRICS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured), encoding="utf-8")


def measured(step: int, **values: float) -> Metrics:
    return Metrics(training="sft", step=step, steps=100, values=values)


def write_many(session: Session, count: int) -> None:
    """Write metrics of so many steps at once."""
    line = '{"v": 1, "at": "2026-11-30T16:10:21.387Z", "kind": "metrics", "training": "sft", '
    line += '"epoch": 1, "samples": 16, "tokens": 707, "steps": %d, "step": %d, "values": '
    values = ", ".join(f'"parts/{n}": {n}.5' for n in range(6))
    with (session.folder / EVENTS).open("a", encoding="utf-8") as stream:
        for step in range(1, count + 1):
            stream.write(line % (count, step) + f'{{"loss": {step % 97}.25, {values}}}}}\n')
