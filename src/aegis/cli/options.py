"""Arguments and options that several verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

_CONFIG = "YAML file with the settings, e.g. examples/quickstart.yaml."
_OVERRIDES = "Override a setting, e.g. --set train.epochs=1."
_AUTO_RESUME = "Go on with the newest session of this config; --no-auto-resume starts anew."
_SECTION_TOKENS = "At most so many tokens a private section."

ConfigFile = Annotated[Path, typer.Argument(help=_CONFIG)]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help=_OVERRIDES)]
AutoResume = Annotated[bool, typer.Option(help=_AUTO_RESUME)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AdapterBase = Annotated[str | None, typer.Option(help="An adapter's base, if it has moved.")]
SectionTokens = Annotated[int, typer.Option(min=1, help=_SECTION_TOKENS)]


def group(summary: str) -> typer.Typer:
    """Return a verb that only has verbs below it."""
    return typer.Typer(help=summary, no_args_is_help=True, rich_markup_mode=None)


def repeatable(words: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the call that goes on with this run, for `aegis watch`."""
    settings = [word for override in overrides for word in ("--set", override)]
    return {"argv": [*words, *settings], "cwd": str(Path.cwd())}
