from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from aegis.data.formats import read_items
from aegis.data.records import Pair, Plain, Record, Rejected
from aegis.errors import DataError
from tests.data.test_records import GOOD, SIDE, THINKING

ROWS: list[dict[str, Any]] = [
    {"id": "a", **GOOD, "note": "kept"},
    {"id": "b", "prompt": "殺し方は？", "decision": "REFUSE"},
    {"id": "c", **GOOD, "thinking": THINKING, "final": "Use kill."},
]


def text_of(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(path: Path, **options: Any) -> list[Any]:
    return list(read_items([path], **options))


def files(folder: Path) -> dict[str, Path]:
    """Write the same rows in every format."""
    cells = [
        {key: json.dumps(v) if isinstance(v, dict) else v for key, v in row.items()} for row in ROWS
    ]
    names = list(dict.fromkeys(name for row in cells for name in row))
    quoted = [
        ",".join('"' + str(row.get(n, "")).replace('"', '""') + '"' for n in names) for row in cells
    ]
    texts = {
        "lines.jsonl": text_of(ROWS),
        "array.json": json.dumps(ROWS, ensure_ascii=False, indent=1),
        "array.jsonl": json.dumps(ROWS, ensure_ascii=False),
        "cells.csv": "\n".join([",".join(names), *quoted]),
        "cells.tsv": "\n".join(["\t".join(names), *(row.replace('","', '"\t"') for row in quoted)]),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    names = list(dict.fromkeys(name for row in ROWS for name in row))
    table = pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in ROWS])
    parquet.write_table(table, folder / "table.parquet")
    path = str(folder / "table.arrow")
    with pyarrow.OSFile(path, "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return {path.name: path for path in sorted(folder.iterdir())}


def test_every_format_gives_the_same_items(tmp_path: Path) -> None:
    paths = files(tmp_path)
    assert len(paths) == 7
    expected = read(paths["lines.jsonl"])
    assert [type(item) for item in expected] == [Record] * 3
    for name, path in paths.items():
        assert read(path) == expected, name


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp932", "euc_jp"])
def test_encodings_are_read_and_said(tmp_path: Path, encoding: str) -> None:
    for name, path in files(tmp_path).items():
        if path.suffix in (".parquet", ".arrow"):
            continue
        path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
        said: list[str] = []
        assert [item.id for item in read(path, say=said.append)] == ["a", "b", "c"], name
        shown = {"cp932": "Shift_JIS", "euc_jp": "EUC-JP", "utf-8-sig": "UTF-8 with BOM"}
        assert shown.get(encoding, "UTF-16") in said[0]
        assert "fields of your own, kept: note (1)" in said[0]


def test_arrow_folders_of_datasets_and_of_the_hub_are_read(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS[:2])
    saved, hub = tmp_path / "saved" / "train", tmp_path / "hub" / "data"
    for folder in (saved, hub, tmp_path / "hub" / ".cache"):
        folder.mkdir(parents=True)
    path = str(saved / "data-00000-of-00001.arrow")
    with pyarrow.OSFile(path, "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (saved / "state.json").write_text("{}")
    (saved / "dataset_info.json").write_text("{}")
    parquet.write_table(table, hub / "train-00000-of-00001.parquet")
    (tmp_path / "hub" / ".cache" / "x.json").write_text("[]")
    (tmp_path / "hub" / "README.md").write_text("# card")
    for name in ("saved", "hub"):
        assert [item.id for item in read(tmp_path / name)] == ["a", "b"]


def test_a_folder_without_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder without a file of records"):
        read(tmp_path)


def test_ids_and_kinds_that_cannot_be_used_are_set_aside(tmp_path: Path) -> None:
    pair = {"id": "a", "prompt": "p", "chosen": SIDE, "rejected": {**SIDE, "final": "No."}}
    (tmp_path / "x.jsonl").write_text(text_of([*ROWS, ROWS[0], pair, {"text": "t"}]))
    kinds = [type(item) for item in read(tmp_path / "x.jsonl")]
    assert kinds == [Record, Record, Record, Rejected, Pair, Plain]
    items = read(tmp_path / "x.jsonl", kinds=[Record])
    assert [item.reason for item in items[3:]] == [
        "the id 'a' is used more than once; give every item its own",
        "is no record",
        "decision is missing; it must be one of ALLOW, ESCALATION, DENY, REFUSE",
    ]
    (tmp_path / "y.jsonl").write_text(text_of([{"text": "t"}, *ROWS[:1]]))
    both: list[Any] = list(read_items([tmp_path / "x.jsonl", tmp_path / "y.jsonl"]))
    assert both[-1].reason.startswith("the id 'a' is used more than once")
    assert both[-1].where == "y.jsonl:2"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", b"", "the file is empty"),
        ("x.jsonl", b"\n \n", "the file is empty"),
        ("x.jsonl", b"[" * 200_000, "nested too deeply"),
        ("x.jsonl", b'{"a":' * 100_000, "nested too deeply"),
        ("x.jsonl", b"\x1f\x8b\x08", "is gzip; unpack it"),
        ("x.csv", b"PK\x03\x04", "is zip or a spreadsheet; unpack it"),
        ("x.parquet", b"PAR1\x00\x00", "damaged or cut short, no whole Parquet file"),
        ("x.parquet", b"hello", "is no parquet file"),
        ("x.arrow", b"ARROW1\x00\x00", "damaged or cut short, no whole Arrow file"),
        ("x.csv", b"prompt,decision,prompt\n1,2,3\n", "the column 'prompt' is given twice"),
        ("x.jsonl", b'[{"prompt": "a", "decision": "DENY"} {"a": 1}]', "',' or ']' is missing"),
        ("x.jsonl", b"prompt,decision\n", "not valid JSON"),
    ],
)
def test_files_without_anything_usable_are_errors(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"{name}: ")


def test_a_parquet_file_cut_short_is_an_error(tmp_path: Path) -> None:
    whole = files(tmp_path)["table.parquet"].read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.parquet: damaged or cut short"):
        read(tmp_path / "cut.parquet")


def test_missing_files_and_folders_in_place_of_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        read(tmp_path / "none.csv")
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(DataError, match=r"x\.jsonl: is a folder without a file of records"):
        read(tmp_path / "x.jsonl")


def test_a_line_of_100_mb_is_set_aside_and_the_rest_read(tmp_path: Path) -> None:
    with (tmp_path / "x.jsonl").open("w") as file:
        file.write(text_of(ROWS[:1]) + '{"prompt": "')
        for _ in range(100):
            file.write("x" * 1_000_000)
        file.write('"}\n' + text_of(ROWS[1:]))
    items = read(tmp_path / "x.jsonl")
    assert [type(item) for item in items] == [Record, Rejected, Record, Record]
    assert items[1] == Rejected("x.jsonl:2", "longer than 16,777,216 characters; shorten the line")


@pytest.mark.parametrize(
    ("rows", "where", "reason"),
    [
        ("1,2,3\n", "x.csv:2", "has 3 fields, and the header 2"),
        ("one\n", "x.csv:2", "has 1 fields, and the header 2"),
        ('"a"b,DENY\n', "x.csv:2", "not valid CSV"),
        ('"a,DENY\n', "x.csv:2", "not valid CSV (unexpected end of data)"),
        ("a,MAYBE\n", "x.csv:2", "'MAYBE' is not one of"),
    ],
)
def test_ragged_rows_are_set_aside(tmp_path: Path, rows: str, where: str, reason: str) -> None:
    end = "" if "end of data" in reason else "p,DENY\n"
    (tmp_path / "x.csv").write_text(f"prompt,decision\n{rows}{end}")
    if end:
        bad, good = read(tmp_path / "x.csv")
        assert good.prompt == "p"
        assert bad.where == where
        assert reason in bad.reason
        assert str(bad.content)
    else:
        with pytest.raises(DataError, match="unexpected end of data"):
            read(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (', {"prompt"', "Expecting ':' delimiter"),
        (",", "the array is not closed"),
        ("] []", "more follows after the array's end"),
        (', {"a": NaN}]', "NaN is not a finite number"),
        (', {"a": 1, "a": 2}]', "'a' is given twice"),
    ],
)
def test_a_damaged_array_keeps_what_stands_before(tmp_path: Path, end: str, reason: str) -> None:
    (tmp_path / "x.jsonl").write_text("[" + json.dumps(ROWS[0]) + end)
    good, bad = read(tmp_path / "x.jsonl")
    assert good.id == "a"
    assert bad.where == "x.jsonl[1]"
    assert reason in bad.reason


def test_a_large_array_is_read_in_pieces(tmp_path: Path) -> None:
    rows = [{"id": f"{n}", "prompt": "長い" * 400, "decision": "DENY"} for n in range(3000)]
    (tmp_path / "x.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert [item.id for item in read(tmp_path / "x.json")] == [row["id"] for row in rows]
