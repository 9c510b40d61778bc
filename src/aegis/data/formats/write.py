"""Write items as JSON Lines, JSON, CSV, Parquet or a folder for Hugging Face's `load_dataset`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from aegis.data.formats.rows import STRUCTURED, import_pyarrow
from aegis.data.records import Item, Pair, Plain, Record, Rejected, write_jsonl
from aegis.storage.files import open_output

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_TABLES: dict[type, str] = {Record: "records", Pair: "pairs", Plain: "plain"}


def write_file(path: Path, items: Sequence[Item | Rejected]) -> None:
    """Write one file in the format that its name asks for; the old one stays until it is whole."""
    rows = [item.to_json() for item in items]
    suffix = path.suffix.lower()
    with open_output(path) as stream:
        if suffix == ".parquet":
            _write_parquet(stream, rows)
        elif suffix in (".csv", ".tsv"):
            _write_csv(stream, rows, "\t" if suffix == ".tsv" else ",")
        else:
            lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
            array = suffix == ".json"
            text = (
                "[\n" + ",\n".join(lines) + "\n]\n" if array else "".join(f"{x}\n" for x in lines)
            )
            stream.write(text.encode())


def write_hub_folder(folder: Path, items: Sequence[Item | Rejected]) -> None:
    """Write a Parquet file for each kind, the rejects, and a card that names them as configs."""
    configs = []
    good = [item for item in items if not isinstance(item, Rejected)]
    for kind, name in _TABLES.items():
        if rows := [item.to_json() for item in good if isinstance(item, kind)]:
            with (folder / f"{name}.parquet").open("wb") as stream:
                _write_parquet(stream, rows)
            configs.append({"config_name": name, "data_files": f"{name}.parquet"})
    write_jsonl(folder / "rejected.jsonl", [item for item in items if isinstance(item, Rejected)])
    licences = sorted({item.provenance.licence or "" for item in good if item.provenance} - {""})
    head: dict[str, Any] = {
        "language": sorted({item.language for item in good}),
        "configs": configs,
    }
    if licences:
        head["license"] = licences[0].lower() if len(licences) == 1 else "other"
    told = f"Licences of its items: {', '.join(licences) or 'not known'}.\n"
    card = f"---\n{yaml.safe_dump(head, allow_unicode=True)}---\n# Data set\n\n{told}"
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_csv(stream: BinaryIO, rows: Sequence[dict[str, Any]], delimiter: str) -> None:
    """Write nested values as JSON in their cells, which is how they are read again."""
    file = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    writer = csv.DictWriter(file, _columns(rows), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    file.flush()
    file.detach()  # whoever opened the stream closes it


def _write_parquet(stream: BinaryIO, rows: Sequence[dict[str, Any]]) -> None:
    """Write a column a field; one that holds values of several types becomes JSON text."""
    pyarrow = import_pyarrow()
    from pyarrow import parquet

    arrays = {}
    for name in _columns(rows):
        values = [row.get(name) for row in rows]
        try:
            if name not in STRUCTURED and any(isinstance(value, dict | list) for value in values):
                raise TypeError("would get fields that a row does not have")
            arrays[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, TypeError, OverflowError):
            arrays[name] = pyarrow.array(
                [None if value is None else _cell(value) for value in values]
            )
    parquet.write_table(pyarrow.table(arrays), stream)


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
