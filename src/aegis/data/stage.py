"""Stages 1 and 2: what goes into `raw/` and `records/`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from aegis.config import DataSettings
from aegis.data.clean import clean
from aegis.data.clean.shards import TRACE
from aegis.data.folder import LOG, STATISTICS, StepOutcome
from aegis.data.formats import data_files, read_items
from aegis.data.personal import mask_everywhere
from aegis.data.records import (
    Pair,
    Record,
    Rejected,
    check_unique,
    parse_pair,
    parse_record,
    read_jsonl,
    read_rows,
    write_jsonl,
)
from aegis.data.report import Rejects, Statistics, write_report
from aegis.data.seed import SEED_FOLDER, seed_files, seed_pairs, seed_records
from aegis.data.sources.generate.calls import Calls
from aegis.data.sources.generate.run import TopicPlan, generate
from aegis.data.split import SPLITS, counts, split_pairs, split_records
from aegis.data.topics import Topic, read_topics
from aegis.errors import DataError
from aegis.storage.files import to_json
from aegis.storage.journal import Remember

T = TypeVar("T", Record, Pair)


def source_files(data: DataSettings) -> list[Path]:
    """Return every file that stage 1 reads.

    Raises:
        DataError: if a folder holds none.
    """
    seed = seed_files(registers=data.registers) if data.seed_records else []
    own = [file for path in (*data.records, *data.pairs) for file in data_files(Path(path))]
    return [*own, topics_file(data), *seed]


def topics_file(data: DataSettings) -> Path:
    return Path(data.generate.topics) if data.generate.topics else SEED_FOLDER / "topics.jsonl"


def collect(data: DataSettings) -> tuple[list[Record], list[Pair], list[Topic], list[Rejected]]:
    """Read the user's files, then the seed's: of equal prompts the first wins.

    Raises:
        DataError: if a file or line cannot be used, or an id stands twice.
    """
    rejected: list[Rejected] = []
    records = _usable(data.records, Record, data.skip_bad, rejected)
    pairs = _usable(data.pairs, Pair, data.skip_bad, rejected)
    if data.seed_records:
        records += seed_records(registers=data.registers)
        pairs += seed_pairs(registers=data.registers)
    read = read_topics(topics_file(data), skip_bad=data.skip_bad)
    rejected += read.rejected
    check_unique(records, "data.records")
    check_unique(pairs, "data.pairs")
    return records, pairs, read.topics[: data.generate.samples], rejected


def _usable(
    paths: Sequence[str], kind: type[T], skip_bad: bool, rejected: list[Rejected]
) -> list[T]:
    """Return the items of this kind in the user's files, in any format; set the others aside."""
    usable: list[T] = []
    items = read_items([*map(Path, paths)], kinds=[kind], whole_paths=True) if paths else ()
    for item in items:
        if isinstance(item, kind):
            usable.append(item)
        elif isinstance(item, Rejected):
            if not skip_bad:
                remedy = "(or pass --skip-bad to leave such lines out)"
                raise DataError(f"{item.where}: {item.reason} {remedy}")
            rejected.append(item)
    return usable


def write_raw(folder: Path, data: DataSettings, calls: Calls) -> dict[str, int]:
    """Collect, generate, mask personal data, write; return the counts.

    Raises:
        StoppedError: if a stop was asked for; the answers so far are in the ledger.
    """
    records, pairs, topics, rejected = collect(data)
    generated = generate(topics, calls, TopicPlan(steps=("thinking",)))
    if generated.stopped:
        raise generated.stopped
    masked = 0
    for name, items in (
        ("records.jsonl", records + generated.records),
        ("pairs.jsonl", pairs),
        ("rejected.jsonl", rejected + generated.rejected),
    ):
        rows = [mask_everywhere(item.to_json()) for item in items]
        masked += sum(count for _, count in rows)
        write_jsonl(folder / name, (row for row, _ in rows))
    statistics = {
        "records": len(records),
        "pairs": len(pairs),
        "generated": len(generated.records),
        "personal_data_masked": masked,
    }
    (folder / STATISTICS).write_text(to_json(statistics), encoding="utf-8")
    return statistics


def write_records(
    folder: Path,
    raw: Path,
    data: DataSettings,
    *,
    seed: int,
    too_long: Callable[[str], str | None],
    remember: Remember = lambda _, make: make(),
) -> dict[str, int]:
    """Clean and split what stage 1 collected; return each split's size and how much was set aside.

    Raises:
        DataError: if a split would be empty.
    """
    raw_pairs = _read(raw / "pairs.jsonl", parse_pair)
    records = _read(raw / "records.jsonl", parse_record)
    cleaned = clean(records, raw_pairs, data.quality, too_long=too_long, remember=remember)
    shares = {"validation": data.split.validation, "test": data.split.test, "seed": seed}
    near = data.quality.near_duplicate
    splits = split_records(cleaned.records, **shares, near=near, by_source=data.split.by_source)
    if empty := [name for name in SPLITS if not splits[name]]:
        raise DataError(
            f"data.split: nothing is left for {empty[0]} after cleaning; give more records"
        )
    pairs = split_pairs(cleaned.pairs, **shares, near=near)
    uncollected = [Rejected(**row) for row in read_rows(raw / "rejected.jsonl")]
    rejected = uncollected + cleaned.rejected
    for name in SPLITS:
        write_jsonl(folder / f"{name}.jsonl", splits[name])
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "rejected.jsonl", rejected)
    log, rejects = cleaned.log(), Rejects.of(rejected)
    unread, came = Rejects.of(uncollected).counts, log[0].into
    log.insert(
        0, StepOutcome("collect", 1, came + unread.total(), came, dict(sorted(unread.items())))
    )
    steps = [step.to_json() for step in log]
    write_jsonl(folder / LOG, steps)
    kept = [*(record for name in SPLITS for record in splits[name]), *pairs]
    reported = {"before": Statistics.of([*records, *raw_pairs]), "after": Statistics.of(kept)}
    write_report(folder, **reported, rejects=rejects, steps=steps)
    write_jsonl(folder / TRACE, cleaned.trace())
    masked = json.loads((raw / STATISTICS).read_text(encoding="utf-8"))["personal_data_masked"]
    statistics = _statistics(splits, pairs, rejects) | {"personal_data_masked": masked}
    (folder / STATISTICS).write_text(to_json(statistics), encoding="utf-8")
    return {name: len(splits[name]) for name in SPLITS} | {"rejected": len(rejected)}


def read_split(folder: Path, name: str) -> list[Record]:
    """Read one split of a `records/` artifact."""
    return _read(folder / f"{name}.jsonl", parse_record)


def read_pairs(folder: Path, split: str) -> list[Pair]:
    """Read the pairs of one split of a `records/` artifact."""
    return [pair for pair in _read(folder / "pairs.jsonl", parse_pair) if pair.split == split]


def _read(path: Path, parse: Callable[..., Any]) -> list[Any]:
    return read_jsonl(path, parse)[0] if path.stat().st_size else []


def _statistics(
    splits: dict[str, list[Record]], pairs: list[Pair], rejects: Rejects
) -> dict[str, Any]:
    every = [record for records in splits.values() for record in records]
    return {
        "splits": counts(splits),
        "pairs": dict(sorted(Counter(pair.split or "" for pair in pairs).items())),
        "domains": dict(sorted(Counter(record.domain for record in every).items())),
        "sources": dict(sorted(Counter(record.source for record in every).items())),
        "with_thinking": sum(record.thinking is not None for record in every),
        "rejected": dict(sorted(rejects.counts.items())),
    }
