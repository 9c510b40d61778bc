"""Read training material from files and folders; what cannot be used is set aside with its reason.

A row is told by where it stands: `NAME:LINE`, `NAME[INDEX]` in JSON arrays, Parquet and Arrow.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from aegis.data.formats.forms import recognised
from aegis.data.formats.rows import RawRow, open_rows
from aegis.data.records import Item, Plain, Record, Rejected, parse_item
from aegis.errors import DataError

FOLDER_FILES = ("records.jsonl", "pairs.jsonl", "plain.jsonl")
_SPLIT_FILES = ("train.jsonl", "validation.jsonl", "test.jsonl", "pairs.jsonl")
_SUFFIXES = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow"}
_NOT_DATA = {"state.json", "dataset_info.json", "dataset_dict.json", "dataset_infos.json"}
_NOT_DATA |= {"rejected.jsonl", "log.jsonl", "statistics.json", "manifest.json"}
_NO_DECISION = "decision is missing; it must be one of ALLOW, ESCALATION, DENY, REFUSE"
_SHOWN = 10_000


def read_items(
    paths: Sequence[Path],
    *,
    kinds: Collection[type] = (),
    whole_paths: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Item | Rejected]:
    """Yield each item of the files and folders in order, and what is none with its reason.

    An id that a file gives twice, or that another file gave, is told as well.

    Args:
        paths: JSON Lines, JSON, CSV, TSV, Parquet or Arrow files, data folders, or folders of such
            files as the Hugging Face hub and `save_to_disk` lay them out.
        kinds: classes of items that can be used; by default all.
        whole_paths: name files by their paths, not by their names where those differ.
        say: is told each file's format and encoding, and fields that are not ours.

    Raises:
        DataError: if a file cannot be read, or holds nothing that can be used.
    """
    numbered = read_numbered(paths, kinds=kinds, whole_paths=whole_paths, say=say)
    yield from (item for _, item in numbered)


def read_numbered(
    paths: Sequence[Path],
    *,
    kinds: Collection[type] = (),
    whole_paths: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[int, Item | Rejected]]:
    """Yield the same with the number of the path that it comes from."""
    files = [(n, file) for n, path in enumerate(paths) for file in data_files(path)]
    names = Counter(file.name for _, file in files)
    ids = set[int]()
    usable = 0
    for number, file in files:
        name = str(file) if whole_paths or names[file.name] > 1 else file.name
        part_of_folder = file != paths[number]
        if part_of_folder and not file.stat().st_size:
            continue
        opened = open_rows(file, name)
        count, own, first = 0, Counter[str](), None
        for row in opened.rows:
            item = _item(row)
            if not isinstance(item, Rejected) and (problem := _problem(item, kinds, ids)):
                item = Rejected(row.where, problem, item.to_json())
            if isinstance(item, Rejected):
                first = first or f"{item.where}: {item.reason}"
            else:
                count += 1
                own.update(item.extra.keys())
            yield number, item
        usable += count
        if not count and not part_of_folder:
            problem = f"the first problem: {first}" if first else "the file is empty"
            raise DataError(f"{name}: holds no usable record ({problem}); give another file")
        own_fields = f"; fields of your own, kept: {_listed(own)}" if own else ""
        say(f"{name}: {opened.format}, {count:,} usable{own_fields}")
    if not usable:
        raise DataError(f"{', '.join(map(str, paths))}: holds no usable record; give other files")


def data_files(path: Path) -> list[Path]:
    """Return the files that a path stands for.

    Raises:
        DataError: if it is a folder without any.
    """
    if not path.is_dir():
        return [path]
    for layout in (FOLDER_FILES, _SPLIT_FILES):
        if (path / layout[0]).is_file():
            return [path / name for name in layout if (path / name).is_file()]
    if files := [path / name for name in FOLDER_FILES if (path / name).is_file()]:
        return files
    inner = (file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file())
    names = (name for name in inner if name.suffix.lower() in _SUFFIXES)
    shown = (name for name in names if not any(part.startswith(".") for part in name.parts))
    if files := [path / name for name in shown if name.name not in _NOT_DATA]:
        return files
    suffixes = ", ".join(sorted(_SUFFIXES))
    raise DataError(f"{path}: is a folder without a file of records ({suffixes}); give files")


def _item(row: RawRow) -> Item | Rejected:
    if row.problem:
        return Rejected(row.where, row.problem, {"line": row.text[:_SHOWN]} if row.text else {})
    try:
        return parse_item(recognised(row.values, row.where), where=row.where)
    except DataError as error:
        return Rejected(row.where, str(error).removeprefix(f"{row.where}: "), row.values)


def _problem(item: Item, kinds: Collection[type], ids: set[int]) -> str | None:
    """Return why an item cannot be used; else note its id."""
    if kinds and type(item) not in kinds:
        if isinstance(item, Plain) and Record in kinds:
            return _NO_DECISION
        return f"is no {' or '.join(sorted(kind.__name__.lower() for kind in kinds))}"
    name = f"{type(item).__name__} {item.id}".encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest())
    if key in ids:
        return f"the id {item.id!r} is used more than once; give every item its own"
    ids.add(key)
    return None


def _listed(own: Counter[str], most: int = 8) -> str:
    names = [f"{name} ({count:,})" for name, count in own.most_common(most)]
    return ", ".join([*names, f"{len(own) - most} more"] if len(own) > most else names)
