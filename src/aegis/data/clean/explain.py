"""A record's whole way through a data folder: what each step did to it, and where it is now."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis.data.clean.shards import TRACE
from aegis.data.folder import FILES, LOG
from aegis.data.records import Rejected, read_rows
from aegis.errors import BadInputError

_SPLITS = ("train.jsonl", "validation.jsonl", "test.jsonl")


@dataclass(frozen=True)
class Way:
    """What became of an item.

    Args:
        came_from: the file and line where it was read.
        steps: in order, each with `step`, `version` and what it tells: `{}` if it changed nothing.
        lies_in: the file of the folder that holds it now, and its row there.
    """

    id: str
    came_from: str
    steps: list[dict[str, Any]]
    lies_in: str
    row: dict[str, Any]


def explain(folder: Path, id: str) -> list[Way]:
    """Return the way of each item with this id, or that was read at this place.

    Raises:
        BadInputError: if there is none, or the folder tells nothing.
    """
    if not (folder / TRACE).is_file():
        raise BadInputError(
            f"{folder}: holds no {TRACE}; give a folder that `aegis data clean` or a run wrote"
        )
    steps = read_rows(folder / LOG)
    traces = [row for row in _holding(folder / TRACE, id) if id in (row["id"], row["from"])]
    if not traces:
        raise BadInputError(f"{folder}: nothing went by the id {id!r}; give one of {TRACE}")
    return [_way(folder, steps, trace) for trace in traces]


def _way(folder: Path, steps: list[dict[str, Any]], trace: dict[str, Any]) -> Way:
    told = {row["step"]: row for row in trace["steps"]}
    passed: list[dict[str, Any]] = []
    for step in steps:
        note = told.get(step["step"], {})
        passed.append({"step": step["step"], "version": step["version"], **note})
        if "reason" in note:
            break
    name, row = _place(folder, trace["id"], aside="reason" in passed[-1])
    return Way(trace["id"], trace["from"], passed, name, row)


def _place(folder: Path, id: str, *, aside: bool) -> tuple[str, dict[str, Any]]:
    """Return the file that holds the item, and its row."""
    rejected = FILES[Rejected]
    names = [name for name in (*FILES.values(), *_SPLITS) if name != rejected]
    for name in [rejected] if aside else names:
        if not (folder / name).is_file():
            continue
        for row in _holding(folder / name, id):
            if row.get("where" if aside else "id") == id:
                return name, row
    return "", {}


def _holding(path: Path, text: str) -> list[dict[str, Any]]:
    """Return the rows of the lines that hold the text anywhere."""
    needle = json.dumps(text, ensure_ascii=False).encode()
    with path.open("rb") as file:
        return [json.loads(line) for line in file if needle in line]
