"""Arguments and options that several verbs share, and what every path and number must keep to.

Every path option has a callback of `INPUT`, `OUTPUT_FILE` or `OUTPUT_FOLDER`, and every
number is a `number`, so that what cannot be is told before anything is loaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis.cli.output import require_output_file, require_place
from aegis.errors import BadInputError
from aegis.inputs.text import has_no_end
from aegis.protocol.fixed_texts import Country

if TYPE_CHECKING:
    from aegis.config import Config

_CONFIG = "YAML file with the settings, e.g. examples/quickstart.yaml."
_OVERRIDES = "Override a setting, e.g. --set train.epochs=1."
_AUTO_RESUME = "Go on with the newest session of this config; --no-auto-resume starts anew."
_ACCEPT = "Accept the licence of a base that AEGIS brings, e.g. gemma; it is asked for once."
_OUTPUT_FILE = "File to write, NAME.partial until it is whole; by default it is printed."
_SECTION_TOKENS = "At most so many tokens a private section."
_FINAL_TOKENS = "At most so many tokens of answer."
_TEMPERATURE = "0 takes the most probable token."
MAX_SEED, DAY_S, _MAX_TOKENS = 2**63 - 1, 86_400.0, 1024
MODEL_FILES = ("config.json", "so8.json")


def _checked(check: Callable[[Path], None]) -> Callable[..., Any]:
    """Return a callback that checks the path, or each of the paths, and names the option.

    `~` is the home folder: shells leave it as it is in `--option=~/x`.
    """

    def callback(param: typer.CallbackParam, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [callback(param, path) for path in value]
        try:
            path = value and value.expanduser()
            if path is not None:
                check(path)
            return path
        except (BadInputError, RuntimeError) as error:  # RuntimeError: nobody's home
            raise BadInputError(f"{param.opts[-1]} {error}") from error

    return callback


def _require_readable(path: Path) -> None:
    try:
        if has_no_end(path):
            raise BadInputError(f"{path}: is a pipe or device; give an existing path")
    except (FileNotFoundError, NotADirectoryError):
        return  # the verb says what there should be
    except OSError as error:
        raise BadInputError(
            f"{path}: cannot be read ({error.strerror}); give an existing path"
        ) from error


def locate_model(path: Path) -> Path:
    """Return where a model or an adapter lies, behind `runs/latest` too.

    Raises:
        BadInputError: if there is none; torch, which takes seconds to import, is not needed for it.
    """
    from aegis.runs.record import locate

    folder = locate(path)
    if not folder.exists():
        raise BadInputError(f"{path}: no such model folder; give one that `aegis run` wrote")
    if folder.is_dir() and not any((folder / name).is_file() for name in MODEL_FILES):
        raise BadInputError(
            f"{path}: holds neither a model's config.json nor an adapter's so8.json; "
            "give a folder that `aegis run` wrote, e.g. runs/latest/model"
        )
    return folder


INPUT = _checked(_require_readable)
OUTPUT_FILE, OUTPUT_FOLDER = _checked(require_output_file), _checked(require_place)


def number(*names: str, help: str, least: float, most: float, metavar: str | None = None) -> Any:
    """Return an option for a number within bounds; neither inf nor nan is one."""
    return typer.Option(
        *names, help=help, min=least, max=most, metavar=metavar, callback=_require_finite
    )


def _require_finite(param: typer.CallbackParam, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInputError(f"{param.opts[-1]} must be a finite number, got {value}")
    return value


def _accept(names: list[str] | None) -> None:
    """Note before anything is loaded which licences the user accepts."""
    if names:
        from aegis.model.embedded import accept_licences

        accept_licences(names)


ConfigFile = Annotated[Path, typer.Argument(help=_CONFIG, callback=INPUT)]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help=_OVERRIDES)]
AutoResume = Annotated[bool, typer.Option(help=_AUTO_RESUME)]
AcceptLicence = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-licence", metavar="ID", help=_ACCEPT, callback=_accept, expose_value=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AdapterBase = Annotated[str | None, typer.Option(help="An adapter's base, if it has moved.")]
OutputFile = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", help=_OUTPUT_FILE, callback=OUTPUT_FILE),
]
HelpLines = Annotated[Country | None, typer.Option(help="Whose help lines are told in a crisis.")]
SectionTokens = Annotated[int, number(help=_SECTION_TOKENS, least=1, most=_MAX_TOKENS)]
FinalTokens = Annotated[int, number(help=_FINAL_TOKENS, least=1, most=_MAX_TOKENS)]
Temperature = Annotated[float, number(help=_TEMPERATURE, least=0, most=2)]


def load_settings(file: Path, overrides: Sequence[str]) -> Config:
    """Read a config, and every file of records that it names: before torch, which takes seconds."""
    from aegis.config import load_config
    from aegis.data.mixture import check_datasets
    from aegis.data.stage import collect

    settings = load_config(file, overrides)
    collect(settings.data)
    check_datasets(settings)
    return settings


def group(summary: str) -> typer.Typer:
    """Return a verb that only has verbs below it."""
    return typer.Typer(help=summary, no_args_is_help=True, rich_markup_mode=None)


def repeatable(words: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the call that goes on with this run, for `aegis watch`."""
    settings = [word for override in overrides for word in ("--set", override)]
    return {"argv": [*words, *settings], "cwd": str(Path.cwd())}


def tuned_settings(file: Path) -> list[str]:
    """Return the settings in an optimal_hyperparameters.json as overrides.

    Raises:
        BadInputError: if it is none.
    """
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))["settings"]
        return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            f"--set-from {file}: holds no settings; give an optimal_hyperparameters.json of "
            "aegis tune"
        ) from error
