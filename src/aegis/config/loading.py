"""Read settings from YAML and `--set a.b=c`, and write them back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from aegis.config.root import Config
from aegis.errors import ConfigError


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file and apply `a.b=c` overrides.

    Raises:
        ConfigError: if the file cannot be read, or a key is unknown, of the wrong type or
            impossible.
    """
    try:
        raw = _read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give an existing YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not valid YAML ({' '.join(str(error).split())}); correct the file"
        ) from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: the file must hold keys and values, got {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    return parse_config(raw, where=str(path))


def parse_config(raw: dict[str, Any], *, where: str) -> Config:
    """Check the settings; the error names the field, the rule, the value and the remedy."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(problem) for problem in error.errors())
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error


def dump_yaml(config: Config) -> str:
    """Write every setting, defaults included, so that loading the text gives an equal Config."""
    return yaml.dump(
        config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True
    )


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as the number that people mean; YAML 1.1 takes it for text."""


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would take for a number or PyYAML for a line break."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if "\x85" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
        list("-+.0123456789"),
    )


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _override(raw: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {override!r}: must look like train.lr=1e-4")
    try:
        value = _read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML; quote it") from error
    *parents, last = key.split(".")
    node = raw
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {name} is a value, not a group of settings")
    node[last] = value


_UNION_BRANCHES = {"bool", "str", "literal['auto']", "int", "float", "none", "constrained-str"}


def _explain(problem: Any) -> str:
    place = [part for part in problem["loc"] if part not in _UNION_BRANCHES]
    field = ".".join(map(str, place)) or "the settings"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{field} is not a setting; {remedy}"
    value = problem.get("input")
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message[0].lower() + message[1:]
    shown = "" if isinstance(value, dict | BaseModel) else f", got {value!r}"
    return f"{field}: {message}{shown}; correct this value"


def _known_keys(place: Sequence[str | int]) -> list[str]:
    model: Any = Config
    for part in place:
        model = get_args(model)[0] if isinstance(part, int) else model.model_fields[part].annotation
    return list(model.model_fields)
