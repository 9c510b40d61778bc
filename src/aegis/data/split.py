"""Hold records out so that contrast twins never sit on both sides."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from aegis.data.records import Record

SPLITS = ("train", "validation", "test")


def contrast_groups(records: Sequence[Record]) -> list[list[Record]]:
    """Put together the records that `contrast_of` links, over any number of links; the rest stand
    alone."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.get(name, name) != name:
            name = parent[name]
        return name

    for record in records:
        if record.contrast_of:
            parent[root(record.id)] = root(record.contrast_of)
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[root(record.id)].append(record)
    return list(groups.values())


def split_records(
    records: Sequence[Record], *, validation: float, test: float, seed: int
) -> dict[str, list[Record]]:
    """Deal whole contrast groups to train, validation and test, evenly over decision and language.

    The order inside a stratum comes from a hash of seed and group, so adding a record moves few
    others.

    Returns:
        The three splits by name; each keeps the records' order.
    """
    strata: dict[tuple[str, ...], list[list[Record]]] = defaultdict(list)
    for group in contrast_groups(records):
        strata[_stratum(group)].append(group)
    placed: dict[str, str] = {}
    for stratum in sorted(strata):
        ordered = sorted(
            strata[stratum], key=lambda group: _rank(seed, min(record.id for record in group))
        )
        total, done = sum(map(len, ordered)), 0
        for group in ordered:
            middle = (done + len(group) / 2) / total
            name = (
                "test" if middle < test else "validation" if middle < test + validation else "train"
            )
            placed.update({record.id: name for record in group})
            done += len(group)
    return {name: [record for record in records if placed[record.id] == name] for name in SPLITS}


def pick_split(item_id: str, *, validation: float, test: float, seed: int) -> str:
    """The split of a lone item, by hash."""
    share = int(_rank(seed, item_id)[:12], 16) / 16**12
    return "test" if share < test else "validation" if share < test + validation else "train"


def counts(splits: Mapping[str, Iterable[Record]]) -> dict[str, dict[str, int]]:
    """How many records each split holds, by `DECISION/language`."""
    table: dict[str, dict[str, int]] = {}
    for name, records in splits.items():
        row: dict[str, int] = defaultdict(int)
        for record in records:
            row[f"{record.decision.name}/{record.language}"] += 1
        table[name] = dict(sorted(row.items()))
    return table


def _stratum(group: Sequence[Record]) -> tuple[str, ...]:
    decisions = "+".join(sorted({record.decision.name for record in group}))
    return (decisions, group[0].language, "thinking" if group[0].thinking else "prompt")


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
