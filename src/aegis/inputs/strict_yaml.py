"""Read YAML strictly: what was typed is taken as it was meant, or told with its line."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, ClassVar

import yaml

from aegis.errors import ConfigError
from aegis.inputs.strict_json import exceeds

MOST_CHARACTERS = 1 << 17
_MOST_VALUES, _MOST_DEEP, _MOST_DIGITS = 20_000, 32, 30
_TAG = "tag:yaml.org,2002:"
# YAML 1.1 takes 010 for 8, 1:30 for 90, 2026-01-01 for a date, and 1e-4 for text.
_NUMBERS = {
    "int": r"[-+]?(?:0x[0-9a-f_]+|0b[01_]+|\d[\d_]*)",
    "float": r"[-+]?(?:(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:e[-+]?\d+)?|\.inf)|\.nan",
}
_BAD_TAG = (AttributeError, KeyError, TypeError, ValueError)  # as in !!int x, !!timestamp x
_MISTYPED = re.compile(r"[^\S \r]|[：，；［］｛｝＃－“”‘’]")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar = {
        first: [row for row in rows if row[0].removeprefix(_TAG) not in ("timestamp", *_NUMBERS)]
        for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        marks: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            name, mark = key.value, key.start_mark
            if not isinstance(name, str):
                raise _problem("a key must be text", mark)
            if stray := stray_in(name):
                raise _problem(f"the key {name[:40]!r} {stray}", mark)
            if name in marks:
                both = f"on line {marks[name].line + 1} and on line {mark.line + 1}"
                raise _problem(f"{name!r} is given twice, {both}: keep one, or merge them", mark)
            marks[name] = mark
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if node.tag == f"{_TAG}int":
            node.value = re.sub(r"^([-+]?)0+(?=\d)", r"\1", node.value.replace("_", ""))
            if (digits := len(node.value)) > _MOST_DIGITS:
                raise _problem(f"a number of {digits:,} digits is too long", node.start_mark)
        elif node.style is None and (stray := stray_in(node.value[:1] + node.value[-1:])):
            raise _problem(f"the text {node.value[:40]!r} {stray}", node.start_mark)
        return node


class Dumper(yaml.SafeDumper):
    """Quotes the text that `read_yaml` would take for something else or PyYAML for a line break."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        quoted = "\x85" in data or stray_in(data[:1] + data[-1:])
        return self.represent_scalar(f"{_TAG}str", data, style='"' if quoted else None)


Dumper.add_representer(str, Dumper.represent_str)
for _yaml in (_Loader, Dumper):
    for _kind, _pattern in _NUMBERS.items():
        _regexp = re.compile(rf"(?:{_pattern})\Z", re.ASCII | re.IGNORECASE)
        _yaml.add_implicit_resolver(_TAG + _kind, _regexp, list("-+.0123456789"))


def read_yaml(text: str, where: str) -> Any:
    """Return texts, numbers, booleans, null, lists and mappings of them.

    Raises:
        ConfigError: if it is not YAML, gives a key twice, is too large, or holds unquoted white
            space that is no plain space.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
        if exceeds(value, deep=_MOST_DEEP, values=_MOST_VALUES):
            limits = f"more than {_MOST_VALUES:,} values or nested more than {_MOST_DEEP} deep"
            raise ConfigError(f"{where}: {limits}, aliases counted; settings need no more")
        return json.loads(json.dumps(value))  # what aliases share becomes copies
    except (yaml.YAMLError, RecursionError, *_BAD_TAG) as error:
        raise ConfigError(f"{where}: not valid YAML: {_reason(error, text)}") from error


def stray_in(text: str) -> str | None:
    """Say which white space other than the plain one, or invisible character, it holds, if any."""
    odd = (mark for mark in text if mark.isspace() or unicodedata.category(mark)[0] in "CZ")
    mark = next((mark for mark in odd if mark != " "), None)
    return mark and f"holds {_name(mark)}; type plain spaces, or quote the text"


def _name(mark: str) -> str:
    name = "tab" if mark == "\t" else unicodedata.name(mark, "a control character").lower()
    return f"U+{ord(mark):04X} ({name})"


def _problem(text: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, text, mark)


def _reason(error: Exception, text: str) -> str:
    """Say where and why; white space and marks of another width are the usual reason."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line} holds {_name(chr(error.character))}; remove it"
    if isinstance(error, RecursionError):
        return f"nested more than {_MOST_DEEP} deep"
    if not isinstance(error, yaml.MarkedYAMLError):
        return "a value is not what its tag (!!) says; remove the tag"
    last = error.problem_mark.line if error.problem_mark else 0
    lines = [] if isinstance(error, yaml.constructor.ConstructorError) else text.split("\n")
    for number, line in enumerate(lines[: last + 1], 1):
        part = line if number >= last else line[: len(line) - len(line.lstrip())]
        if mark := _MISTYPED.search(part):
            return f"line {number} holds {_name(mark[0])}; type the plain mark, indent with spaces"
    return f"line {last + 1}: {error.context or ''} {error.problem}".replace(":  ", ": ")
