"""aegis status: where a run stands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def status(
    run: Annotated[Path, typer.Argument(help="A session folder.")] = Path("runs/latest"),
    json: Annotated[bool, typer.Option("--json", help="Print the session record as JSON.")] = False,
) -> None:
    """Show a session's stages, what it is doing now, how long that may take, its last snapshot, and
    whether it is alive."""
    from aegis.cli.show import print_json, print_table
    from aegis.errors import ArtifactError, BadInputError
    from aegis.runs.heartbeat import read_beat
    from aegis.runs.record import load, locate

    folder = locate(run)
    if not folder.is_dir():
        raise BadInputError(
            f"{run}: no such session; start one with: aegis run examples/quickstart.yaml"
        )
    try:
        session = load(folder)
    except ArtifactError as error:
        raise BadInputError(str(error)) from error
    facts = _facts(session, read_beat(session.folder))
    if json:
        print_json(session.to_json() | facts)
        return
    rows = []
    cut_off = {"running": "cut off"} if facts["interrupted"] else {}
    for stage in session.stages:
        seconds = "" if stage.seconds is None else f"{stage.seconds:.0f} s"
        paths = ", ".join(str(session.folder / path) for path in stage.artifacts.values())
        state = cut_off.get(stage.state, stage.state)
        rows.append((stage.name, state, str(stage.attempts), seconds, stage.error or paths))
        for name, step in stage.steps.items():
            state = cut_off.get(step["state"], step["state"])
            rows.append((f"  {name}", state, "", "", _metrics(step["metrics"])))
    print_table(
        ("stage", "state", "attempts", "time", "artifacts"),
        rows,
        title=f"{session.session_id}: {session.stage}",
    )
    for line in _lines(session, facts):
        typer.echo(line)


def _facts(session: Any, beat: Any) -> dict[str, Any]:
    """Return what the record alone does not say: alive or not, progress, last snapshot."""
    import time

    def age_s(then: float) -> dict[str, float]:
        return {"age_s": round(max(0.0, time.time() - then), 1)}

    rows = session.rows("snapshots", last=1)
    snapshot = rows[0] | age_s(rows[0]["unix"]) if rows else None
    running = any(stage.state == "running" for stage in session.stages)
    progress = None
    if beat and not session.finished:
        keys = ("stage", "doing", "done", "total", "left_s", "note")
        progress = {key: getattr(beat, key) for key in keys} | age_s(beat.time)
    return {
        "alive": session.alive,
        "interrupted": running and not session.alive,
        "progress": progress,
        "last_snapshot": snapshot,
    }


def _lines(session: Any, facts: dict[str, Any]) -> list[str]:
    lines = []
    pid = session.process.pid if session.process else None
    if facts["alive"]:
        lines.append(f"process   {pid}, alive")
    elif not session.finished:
        again = " ".join(session.command.get("argv", ["run", "CONFIG"]))
        lines.append(f"process   {pid}, not alive; go on with: aegis {again}")
    if progress := facts["progress"]:
        remaining = "" if progress["left_s"] is None else f", {_span(progress['left_s'])} left"
        count = f" {progress['done']}/{progress['total']}" if progress["total"] else ""
        age = f"({_span(progress['age_s'])} ago)"
        text = f"progress  {progress['doing']}{count}{remaining} {age} {progress['note']}"
        lines.append(text.rstrip())
    if snapshot := facts["last_snapshot"]:
        age = _span(snapshot["age_s"])
        lines.append(
            f"snapshot  {session.folder / snapshot['path']} (step {snapshot['step']}, {age} ago)"
        )
    return lines


def _metrics(metrics: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.3g}" for key, value in metrics.items() if isinstance(value, int | float)
    )


def _span(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
