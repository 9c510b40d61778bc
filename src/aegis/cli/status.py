"""aegis status: where a run stands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis.cli.options import INPUT, AsJson
from aegis.cli.show import echo, main_metrics, print_json, print_table
from aegis.errors import ArtifactError, BadInputError

if TYPE_CHECKING:
    from aegis.runs.heartbeat import Beat
    from aegis.runs.record import Session

_RUN = "A session folder, or that of a study."


def status(
    run: Annotated[Path, typer.Argument(help=_RUN, callback=INPUT)] = Path("runs/latest"),
    json: AsJson = False,
) -> None:
    """Show a session's stages, what it is doing now, how long that may take, its last snapshot, and
    whether it is alive."""
    from aegis.runs.heartbeat import read_beat
    from aegis.runs.record import load, locate

    folder = locate(run)
    if not folder.is_dir():
        raise BadInputError(
            f"{run}: no such session; start one with: aegis run examples/quickstart.yaml"
        )
    if (folder / "study.db").is_file():
        from aegis.cli.tune import show_study

        show_study(folder, json=json)
        return
    try:
        session = load(folder)
    except ArtifactError as error:
        raise BadInputError(str(error)) from error
    facts = _facts(session, read_beat(session.folder))
    if json:
        print_json(session.to_json() | facts)
        return
    rows = _rows(session, interrupted=facts["interrupted"])
    title = f"{session.session_id}: {session.stage}"
    print_table(("stage", "state", "attempts", "time"), rows, title=title)
    for line in _lines(session, facts):
        echo(line)


def _facts(session: Session, beat: Beat | None) -> dict[str, Any]:
    """Return what the record alone does not say: alive or not, progress, last snapshot."""
    snapshot = next(iter(session.rows("snapshots", last=1)), None)
    if snapshot:
        snapshot = snapshot | {"age_s": _age_s(snapshot["unix"])}
    progress = None
    if beat and not session.finished:
        keys = ("stage", "doing", "done", "total", "left_s", "note")
        progress = {key: getattr(beat, key) for key in keys} | {"age_s": _age_s(beat.time)}
    running = any(stage.state == "running" for stage in session.stages)
    return {
        "alive": session.alive,
        "interrupted": running and not session.alive,
        "progress": progress,
        "last_snapshot": snapshot,
    }


def _rows(session: Session, *, interrupted: bool) -> Iterator[tuple[str, ...]]:
    """Yield a row for each stage, followed by those of its steps."""

    def shown(state: str) -> str:
        return "cut off" if interrupted and state == "running" else state

    for stage in session.stages:
        seconds = "" if stage.seconds is None else f"{stage.seconds:.0f} s"
        yield stage.name, shown(stage.state), str(stage.attempts), seconds
        for name, step in stage.steps.items():
            yield f"  {name}", shown(str(step.get("state"))), "", ""


def _lines(session: Session, facts: dict[str, Any]) -> Iterator[str]:
    yield from (f"note      {note}" for note in session.notes)
    for stage in session.stages:
        if stage.error:
            yield f"error     {stage.name}: {stage.error}"
        for name, step in stage.steps.items():
            if metrics := main_metrics(step.get("metrics") or {}):
                yield f"{name:9} {metrics}"
        for name, path in stage.artifacts.items():
            yield f"{name:9} {session.folder / path}"
    pid = session.process.pid if session.process else None
    if facts["alive"]:
        yield f"process   {pid}, alive"
    elif not session.finished:
        again = " ".join(session.command.get("argv", ["run", "CONFIG"]))
        yield f"process   {pid}, not alive; go on with: aegis {again}"
    if progress := facts["progress"]:
        left = "" if progress["left_s"] is None else f", {_span(progress['left_s'])} left"
        count = f" {progress['done']}/{progress['total']}" if progress["total"] else ""
        doing = f"{progress['doing']}{count}{left} ({_span(progress['age_s'])} ago)"
        yield f"progress  {doing} {progress['note']}".rstrip()
    if snapshot := facts["last_snapshot"]:
        path, age = session.folder / snapshot["path"], _span(snapshot["age_s"])
        yield f"snapshot  {path} (step {snapshot['step']}, {age} ago)"


def _age_s(unix: float) -> float:
    return round(max(0.0, time.time() - unix), 1)


def _span(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
