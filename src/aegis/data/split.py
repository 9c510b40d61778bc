"""Hold records out so that contrast twins never sit on both sides."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from aegis.data.records import Record

SPLITS = ("train", "validation", "test")


def contrast_groups(records: Sequence[Record]) -> list[list[Record]]:
    """Group the records that `contrast_of` links, over any number of links; others stand alone."""
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
    others. Each split keeps the records' order.
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
            name = _side((done + len(group) / 2) / total, validation, test)
            placed.update({record.id: name for record in group})
            done += len(group)
    return {name: [record for record in records if placed[record.id] == name] for name in SPLITS}


def pick_split(item_id: str, *, validation: float, test: float, seed: int) -> str:
    """Return the split of a lone item, by hash."""
    return _side(int(_rank(seed, item_id)[:12], 16) / 16**12, validation, test)


def counts(splits: Mapping[str, Iterable[Record]]) -> dict[str, dict[str, int]]:
    """Count each split's records by `DECISION/language`."""
    return {
        name: dict(
            sorted(Counter(f"{item.decision.name}/{item.language}" for item in records).items())
        )
        for name, records in splits.items()
    }


def _side(share: float, validation: float, test: float) -> str:
    return "test" if share < test else "validation" if share < test + validation else "train"


def _stratum(group: Sequence[Record]) -> tuple[str, ...]:
    decisions = "+".join(sorted({record.decision.name for record in group}))
    return (decisions, group[0].language, "thinking" if group[0].thinking else "prompt")


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
