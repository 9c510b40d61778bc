"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path, typer.Argument(help="YAML file with the settings, e.g. examples/quickstart.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a setting, e.g. --set train.epochs=1."),
]
AutoResume = Annotated[
    bool,
    typer.Option(
        help="Go on with the newest session of this config; --no-auto-resume starts anew."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
