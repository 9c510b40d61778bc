"""Read training material from files and data folders; what cannot be used is set aside, told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from aegis.data.records import Item, Rejected, parse_item
from aegis.errors import DataError
from aegis.inputs.strict_json import json_lines, parse_object

FOLDER_FILES = ("records.jsonl", "pairs.jsonl", "plain.jsonl")


def read_items(paths: Sequence[Path]) -> Iterator[Item | Rejected]:
    """Yield each item of the files and data folders in order, and what is none with its reason.

    Raises:
        DataError: if a file cannot be read at all.
    """
    files = [file for path in paths for file in _files(path)]
    names = Counter(file.name for file in files)
    for file in files:
        name = file.name if names[file.name] == 1 else str(file)
        for where, line in json_lines(file, name):
            try:
                yield parse_item(parse_object(line, where), where=where)
            except DataError as error:
                reason = str(error).removeprefix(f"{where}: ")
                yield Rejected(where, reason, {"line": line or ""})


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if files := [path / name for name in FOLDER_FILES if (path / name).is_file()]:
        return files
    raise DataError(f"{path}: holds none of {', '.join(FOLDER_FILES)}; give files or a data folder")
