"""aegis config: what the settings mean, and what a file makes of them."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from typing import TYPE_CHECKING, Annotated

import typer

from aegis.cli.options import ConfigFile, Overrides, group
from aegis.cli.show import echo, print_document, print_json, print_table

if TYPE_CHECKING:
    from aegis.config.explain import Explanation

app = group("Explain settings, show what a file makes of them.")
_KEY = "A setting or section, e.g. train.lr; none for the sections."


@app.command()
def explain(
    key: Annotated[str, typer.Argument(help=_KEY)] = "",
    json: Annotated[bool, typer.Option("--json", help="Print the explanation as JSON.")] = False,
) -> None:
    """Say what a setting does: description, type, bounds, default."""
    from aegis.config.explain import explain as explain_setting

    setting = explain_setting(key)
    if json:
        print_json(asdict(setting))
    elif setting.settings:
        rows = [(part.key, _default(part), part.description) for part in setting.settings]
        print_table(("setting", "default", "description"), rows, title=setting.description)
    else:
        echo(f"{setting.key}\n  {setting.description}\n\n  type     {setting.type}")
        if setting.bounds:
            echo(f"  bounds   {setting.bounds}")
        echo(f"  default  {_default(setting)}")
        echo(f"  path     {setting.key}, as in --set {setting.key}={_default(setting)}")


def _default(setting: Explanation) -> str:
    """Write a default as YAML reads it; a section's are its settings' own."""
    return "…" if isinstance(setting.default, dict) else dumps(setting.default, ensure_ascii=False)


@app.command()
def show(
    file: ConfigFile,
    set_: Overrides = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
) -> None:
    """Print every setting that a run of the file would have, defaults included, as YAML."""
    from aegis.config import dump_yaml, load_config

    config = load_config(file, set_ or [])
    if json:
        print_json(config.model_dump(mode="json"))
    else:
        print_document(dump_yaml(config))
