"""Read JSON Lines strictly: what cannot be kept as it was written is told with its line."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aegis.errors import DataError
from aegis.inputs.text import read_lines

MOST_CHARACTERS, _MOST_DEEP = 1 << 24, 100
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def json_lines(path: Path, name: str) -> Iterator[tuple[str, str | None]]:
    """Yield `NAME:number` and text of each line that is not blank; None for one that is too long.

    Raises:
        DataError: if the file cannot be read, or holds one value spread over lines: of those, some
            lines might pass for records.
    """
    first, limits = True, {"most": MOST_CHARACTERS, "kind": "JSON Lines", "error": DataError}
    for where, whole in read_lines(path, name=name, **limits):
        line = whole and whole.rstrip()
        if line == "":
            continue
        start = line.lstrip()[:2] if first and line else ""
        if start.startswith("[") or start == "{":
            kind, query = ("object", ".") if start == "{" else ("array", ".[]")
            raise DataError(
                f"{where}: holds one JSON {kind} over lines; "
                f"write one object a line, e.g. by: jq -c '{query}'"
            )
        first = False
        yield where, line


class _BadValueError(Exception):
    """What is JSON and not to be used."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _BadValueError(f"{name!r} is given twice; keep one")
    return value


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise _BadValueError(f"{digits[:40]} is not a finite number; correct the line")
    return number


_HOOKS: Any = {"object_pairs_hook": _unique, "parse_float": _finite, "parse_constant": _finite}
_DECODER = json.JSONDecoder(**_HOOKS)


def parse_object(line: str | None, where: str) -> dict[str, Any]:
    """Return the object of a line.

    Raises:
        DataError: if it is none, gives a key twice, is nested too deeply or too long, or holds a
            number that is not finite, or text that is not.
    """
    if line is None:
        raise DataError(f"{where}: longer than {MOST_CHARACTERS:,} characters; shorten the line")
    try:
        value = _DECODER.decode(line)
    except _BadValueError as error:
        raise DataError(f"{where}: {error}") from error
    except json.JSONDecodeError as error:
        at = f"column {error.pos + 1}, at {line[error.pos : error.pos + 20]!r}"
        raise DataError(f"{where}: not valid JSON ({error.msg}, {at}); correct the line") from error
    except RecursionError as error:
        raise DataError(f"{where}: not valid JSON (nested too deeply); correct the line") from error
    except ValueError as error:  # Python's limit on an integer's digits
        raise DataError(f"{where}: a number has too many digits; correct the line") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be a JSON object, got {type(value).__name__}; correct it")
    if line.count("[") + line.count("{") > _MOST_DEEP and exceeds(value, deep=_MOST_DEEP):
        raise DataError(f"{where}: nested more than {_MOST_DEEP} deep; correct the line")
    if _SURROGATE.search(line):
        _require_text(value, where)
    return value


def exceeds(value: Any, *, deep: int, values: int | None = None) -> bool:
    """Return whether it is nested deeper, or holds more values; what is shared counts anew."""
    left, count = [(value, 0)], 0
    while left:
        part, depth = left.pop()
        count += 1
        if depth > deep or (values is not None and count > values):
            return True
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        left += [(item, depth + 1) for item in inner]
    return False


def _require_text(value: dict[str, Any], where: str) -> None:
    for name, part in value.items():
        try:
            json.dumps([name, part], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: {name!r} holds a lone surrogate, half a character, which is not text; "
                "correct the line"
            ) from error
