"""aegis status: where a run stands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def status(
    run: Annotated[Path, typer.Argument(help="A session folder.")] = Path("runs/latest"),
    json: Annotated[bool, typer.Option("--json", help="Print the session record as JSON.")] = False,
) -> None:
    """Show a session's stages, how long each took, and where its artifacts are."""
    from aegis.cli.show import print_json, print_table
    from aegis.durable.session import load, locate
    from aegis.errors import ArtifactError, BadInputError

    folder = locate(run)
    if not folder.is_dir():
        raise BadInputError(f"{run}: no such session; start one with: aegis run examples/quickstart.yaml")
    try:
        session = load(folder)
    except ArtifactError as error:
        raise BadInputError(str(error)) from error
    if json:
        print_json(session.to_json())
        return
    rows = []
    for stage in session.stages:
        seconds = "" if stage.seconds is None else f"{stage.seconds:.0f} s"
        paths = ", ".join(str(session.folder / path) for path in stage.artifacts.values())
        rows.append((stage.name, stage.state, seconds, stage.error or paths))
    print_table(("stage", "state", "time", "artifacts"), rows, title=f"{session.session_id}: {session.stage}")
