"""Read settings from YAML and `--set a.b=c`, and write them back."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from aegis.config.explain import OTHER_NAMES, Explanation, explain, meant_by
from aegis.config.root import Config
from aegis.errors import ConfigError
from aegis.inputs.strict_yaml import MOST_CHARACTERS, Dumper, read_yaml, stray_in
from aegis.inputs.text import read_text

_MOST_PROBLEMS, _MOST_SHOWN = 8, 80


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file and apply `a.b=c` overrides.

    Raises:
        ConfigError: if the file cannot be read, or a key is unknown, of the wrong type or
            impossible.
    """
    text = read_text(path, most=MOST_CHARACTERS, kind="YAML", error=ConfigError)
    raw = read_yaml(text, str(path))
    if raw is None:
        raise ConfigError(f"{path}: holds no setting; write one, or {{}} for the defaults")
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: the file must hold keys and values, got {type(raw).__name__} {_shown(raw)}; "
            "write each setting as in base: models/x"
        )
    for override in overrides:
        _override(raw, override)
    return parse_config(raw, where=str(path))


def settings_from(overrides: Iterable[str]) -> Config:
    """Return the defaults with these `a.b=c` overrides; raise ConfigError as `load_config` does."""
    raw: dict[str, Any] = {}
    for override in overrides:
        _override(raw, override)
    return parse_config(raw, where="--set")


def parse_config(raw: dict[str, Any], *, where: str) -> Config:
    """Check the settings; the error names the field, the rule, the value and the remedy."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        lines = list(dict.fromkeys(map(_explain, error.errors())))
        if len(lines) > _MOST_PROBLEMS:
            lines[_MOST_PROBLEMS:] = [f"and {len(lines) - _MOST_PROBLEMS} more"]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error


def dump_yaml(config: Config) -> str:
    """Write every setting, defaults included, so that loading the text gives an equal Config."""
    return yaml.dump(
        config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True
    )


def _override(raw: dict[str, Any], override: str) -> None:
    where = f"--set {_shown(override)}"
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"{where}: must look like train.lr=1e-4")
    if stray := stray_in(key):
        raise ConfigError(f"{where}: {stray}")
    value = read_yaml(text, where)
    for name in reversed(key.strip(" ").split(".")):
        value = {name: value}
    _merge(raw, value, where)


def _merge(group: dict[str, Any], changes: dict[str, Any], where: str) -> None:
    """Set values; in a group of settings only those that are named."""
    for name, value in changes.items():
        if isinstance(value, dict) and (inner := group.get(name)) is not None:
            if not isinstance(inner, dict):
                raise ConfigError(f"{where}: {name} is a value, not a group of settings")
            _merge(inner, value, where)
        elif value is None and isinstance(group.get(name), dict):
            raise ConfigError(f"{where}: {name} is a group of settings; set one of them")
        else:
            group[name] = value


_UNION_BRANCHES = {"bool", "str", "literal['auto']", "int", "float", "none", "constrained-str"}


def _explain(problem: Any) -> str:
    *outer, last = problem["loc"] or ("the settings",)
    place = [part for part in outer if part not in _UNION_BRANCHES]
    if problem["type"] == "extra_forbidden":
        field = ".".join(map(str, [*place, last]))
        section = explain(".".join(part for part in place if isinstance(part, str)))
        return f"{field} is not a setting; {_remedy(str(last), section)}"
    field = ".".join(map(str, place + [last] * (last not in _UNION_BRANCHES)))
    value = problem.get("input")
    if value is None:
        return f"{field} is empty; give it a value or remove it"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message[0].lower() + message[1:]
    shown = "" if isinstance(value, dict | BaseModel) else f", got {_shown(value)}"
    remedy = "put it in quotes" if problem["type"] == "string_type" else "correct this value"
    return f"{field}: {message}{shown}; {remedy}"


def _remedy(name: str, section: Explanation) -> str:
    """Return where a setting is that is not among the known ones."""
    name = unicodedata.normalize("NFKC", name)
    if name in OTHER_NAMES:
        return f"it is {OTHER_NAMES[name]} here (aegis config explain {OTHER_NAMES[name]})"
    if places := meant_by(name):
        return f"did you mean {' or '.join(places[:4])}?"
    known = [setting.key.rpartition(".")[2] for setting in section.settings]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
