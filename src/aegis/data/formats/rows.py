"""Rows of JSON Lines, JSON, CSV, Parquet and Arrow files, told by their content and their name."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from aegis.errors import DataError, MissingPackageError
from aegis.inputs.encodings import NAMES, EncodedLine, detect_encoding, encoded_lines
from aegis.inputs.strict_json import MOST_CHARACTERS, parse_object
from aegis.inputs.text import has_no_end

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip or a spreadsheet",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"SQLite": "SQLite",
}
_FORMATS = "JSON Lines, JSON, CSV, TSV, Parquet or Arrow"
_DELIMITERS = ",\t;"
STRUCTURED = ("thinking", "chosen", "rejected", "provenance", "messages", "conversations")
_CHUNK, _PEEK = 1 << 20, 1 << 16
_SPACE = re.compile(r"\s*")
_BATCH = 1000


@dataclass(frozen=True)
class RawRow:
    """One row of a file as a mapping, or why it is none."""

    where: str
    values: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Opened:
    """A file's format, its encoding included, and its rows, read as they are asked for."""

    format: str
    rows: Iterator[RawRow]


def open_rows(path: Path, name: str) -> Opened:
    """Tell a file's format and encoding, and begin to read it.

    Raises:
        DataError: if it is no file of rows; while the rows are read, if the rest cannot be.
    """
    try:
        if path.is_dir():
            raise DataError(f"{name}: is a folder; give a file")
        if has_no_end(path):
            raise DataError(f"{name}: is a pipe or device; give a file")
        with path.open("rb") as file:
            start = file.read(4096)
        if start.startswith(b"PAR1"):
            return Opened("Parquet", _parquet_rows(path, name))
        if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            return Opened("Arrow", _arrow_rows(path, name, stream=not start.startswith(b"ARROW1")))
        if packed := next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), ""):
            raise DataError(f"{name}: is {packed}; unpack it and give {_FORMATS}")
        if path.suffix.lower() in (".parquet", ".arrow"):
            raise DataError(
                f"{name}: is no {path.suffix[1:]} file, or a damaged one; write it anew"
            )
        encoding = detect_encoding(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{name}: cannot be read ({reason}); give an existing file") from error
    return _open_text(path, name, encoding)


def _open_text(path: Path, name: str, encoding: str) -> Opened:
    with path.open(encoding=encoding, errors="replace", newline="\n") as file:
        start = file.read(_PEEK).lstrip("\ufeff \t\r\n")
    lines = encoded_lines(path, encoding, name=name, most=MOST_CHARACTERS)
    first, _, more = start.partition("\n")
    if path.suffix.lower() in (".csv", ".tsv"):
        kind, rows = "CSV", _csv_rows(lines, name, first)
    elif start.startswith("["):
        kind, rows = "a JSON array", _array_rows(path, name, encoding)
    elif more and start.startswith("{") and not _is_json(first):
        kind, rows = "JSON", _object_rows(path, name, encoding, lines)
    else:
        kind, rows = "JSON Lines", map(_json_row, lines)
    return Opened(f"{kind}, {NAMES[encoding]}", rows)


def _json_row(line: EncodedLine) -> RawRow:
    if line.problem:
        return RawRow(line.where, text=line.text, problem=line.problem)
    return _parsed(line.where, line.text.strip())


def _parsed(where: str, text: str) -> RawRow:
    try:
        return RawRow(where, parse_object(text, where))
    except DataError as error:
        return RawRow(where, text=text, problem=str(error).removeprefix(f"{where}: "))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _object_rows(
    path: Path, name: str, encoding: str, lines: Iterator[EncodedLine]
) -> Iterator[RawRow]:
    """Read one object spread over lines; if the file is more than that, its lines."""
    with path.open(encoding=encoding, errors="replace") as file:
        text = file.read(MOST_CHARACTERS + 1)
    if len(text) <= MOST_CHARACTERS and "\n" in text.strip() and _is_json(text):
        yield _parsed(f"{name}[0]", text)
    else:
        yield from map(_json_row, lines)


def _array_rows(path: Path, name: str, encoding: str) -> Iterator[RawRow]:
    """Read an array an element at a time, so that its size is no matter.

    Where it is no JSON any more nothing after it can be told apart: the rest is one row.
    """
    decoder, index = json.JSONDecoder(), 0
    with path.open(encoding=encoding, errors="replace") as file:
        text = file.read(_CHUNK)
        position = text.index("[") + 1
        while True:
            position = _end_of_space(text, position)
            where = f"{name}[{index}]"
            if text.startswith("]", position):
                text, position = text[position + 1 :] + file.read(_PEEK), 0
                if not text.strip():
                    return
                end, problem = 0, "more follows after the array's end"
            else:
                end, problem = _element_end(decoder, text, position)
            size = len(text) - position
            if problem and size <= MOST_CHARACTERS and (more := file.read(max(_CHUNK, size))):
                text, position = text[position:] + more, 0
                continue
            if problem:
                problem = f"not valid JSON ({problem}); nothing from here on can be used"
                yield RawRow(where, text=text[position:], problem=problem)
                return
            element = text[position:end]
            if "\ufffd" in element:
                problem = f"holds characters that are no {NAMES[encoding]}; save the file as UTF-8"
                yield RawRow(where, text=element, problem=problem)
            else:
                yield _parsed(where, element)
            position, index = end + text.startswith(",", end), index + 1


def _element_end(decoder: json.JSONDecoder, text: str, position: int) -> tuple[int, str]:
    """Return where the comma or bracket after an element stands, and why there is none."""
    try:
        _, end = decoder.raw_decode(text, position)
    except RecursionError:
        return position, "nested too deeply"
    except json.JSONDecodeError as error:
        return position, error.msg if position < len(text) else "the array is not closed"
    except ValueError:
        return position, "a number has too many digits"
    end = _end_of_space(text, end)
    return end, "" if text[end : end + 1] in (",", "]") else "',' or ']' is missing"


def _end_of_space(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()  # pyright: ignore[reportOptionalMemberAccess]


def _csv_rows(lines: Iterator[EncodedLine], name: str, first: str) -> Iterator[RawRow]:
    delimiter = max(_DELIMITERS, key=first.count)
    csv.field_size_limit(MOST_CHARACTERS)
    used: list[EncodedLine] = []  # by the row that is being read: a quoted cell may have several

    def texts() -> Iterator[str]:
        for line in lines:
            used.append(line)
            yield line.text if line.text.endswith("\n") else line.text + "\n"

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        used.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problem = f"not valid CSV ({error}); correct the quotes"
            yield RawRow(used[0].where, text="".join(line.text for line in used), problem=problem)
            continue
        if cells is None:
            return
        if not header:
            header = _header(cells, name)
            continue
        where, problem = used[0].where, next((line.problem for line in used if line.problem), "")
        if len(cells) != len(header):
            problem = problem or f"has {len(cells)} fields, and the header {len(header)}"
        if problem:
            yield RawRow(where, text="".join(line.text for line in used), problem=problem)
        else:
            yield _csv_row(where, dict(zip(header, cells, strict=True)))


def _header(cells: list[str], name: str) -> list[str]:
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, 1)]
    if twice := [cell for cell, count in Counter(names).items() if count > 1]:
        raise DataError(f"{name}: the column {twice[0]!r} is given twice; keep one")
    return names


def _csv_row(where: str, cells: dict[str, str]) -> RawRow:
    values: dict[str, Any] = {}
    for name, text in cells.items():
        if name in STRUCTURED and text.lstrip().startswith(("{", "[")):
            row = _parsed(where, f'{{"value": {text}}}')
            if row.problem:
                return RawRow(where, text=text, problem=f"{name}: {row.problem}")
            values |= {name: row.values["value"]}
        elif text:
            values[name] = text
    return RawRow(where, values)


def _parquet_rows(path: Path, name: str) -> Iterator[RawRow]:
    pyarrow = import_pyarrow()
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _table_rows(file.iter_batches(batch_size=_BATCH), name)
    except (pyarrow.ArrowException, OSError) as error:
        _damaged(name, "Parquet", error)


def _arrow_rows(path: Path, name: str, *, stream: bool) -> Iterator[RawRow]:
    pyarrow = import_pyarrow()
    try:
        with pyarrow.memory_map(str(path)) as source:
            if stream:
                yield from _table_rows(pyarrow.ipc.open_stream(source), name)
                return
            file = pyarrow.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
            yield from _table_rows(batches, name)
    except (pyarrow.ArrowException, OSError) as error:
        _damaged(name, "Arrow", error)


def _damaged(name: str, kind: str, error: Exception) -> NoReturn:
    raise DataError(
        f"{name}: damaged or cut short, no whole {kind} file "
        f"({str(error).splitlines()[0][:120]}); write or download it anew"
    ) from error


def _table_rows(batches: Iterable[Any], name: str) -> Iterator[RawRow]:
    index = 0
    for batch in batches:
        for values in batch.to_pylist():
            where = f"{name}[{index}]"
            index += 1
            try:  # once through JSON: what is none (bytes, dates, NaN) is told, not lost
                text = json.dumps(_without_nulls(values), ensure_ascii=False, allow_nan=False)
                yield RawRow(where, json.loads(text))
            except (TypeError, ValueError) as error:
                yield RawRow(
                    where, text=str(values), problem=f"holds a value that is no JSON ({error})"
                )


def _without_nulls(value: Any) -> Any:
    """Leave out the fields of a struct that a row does not have."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [*map(_without_nulls, value)] if isinstance(value, list) else value


def import_pyarrow() -> Any:
    """Return the package that Parquet and Arrow files need, with its `ipc`."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise MissingPackageError(
            "Parquet and Arrow files need pyarrow; install it: pip install 'aegis-so8t[data]'"
        ) from error
    return pyarrow
