"""Hold items out so that nothing leaks: twins, pages and near-duplicates stay on one side."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from aegis.data.clean import SimilarTexts
from aegis.data.records import Item, Pair, Plain, Record

T = TypeVar("T", bound=Item)
SPLITS = ("train", "validation", "test")


def contrast_groups(records: Sequence[T]) -> list[list[T]]:
    """Group the records that `contrast_of` links, over any number of links; others stand alone."""
    return _grouped(records, [_twin(record) for record in records])


def leak_groups(
    items: Sequence[T], *, near: float | None = None, by_source: bool = False
) -> list[list[T]]:
    """Group what would leak from one split into another; other items stand alone.

    Together are items that `contrast_of` links, those of one page (`provenance.url`), those whose
    texts are nearly the same, and whatever such links join over any number of steps.

    Args:
        near: Jaccard similarity from which two texts are nearly the same; None compares none.
        by_source: keep all items of one `source` together, too.
    """
    keys = [_twin(item) for item in items]
    similar = SimilarTexts(near) if near is not None else None
    for number, item in enumerate(items):
        if item.provenance and item.provenance.url:
            keys[number].append(f"page {item.provenance.url}")
        if by_source:
            keys[number].append(f"source {item.source}")
        if similar:
            text = item.text if isinstance(item, Plain) else item.prompt
            keys[number] += [f"item {items[other].id}" for other in similar.alike(text)]
            similar.add(number, text)
    return _grouped(items, keys)


def _twin(item: Item) -> list[str]:
    """Return what the item shares with its twin: both have the twin's name."""
    twin = item.contrast_of if isinstance(item, Record) else None
    return [f"item {twin}"] if twin else []


def _grouped(items: Sequence[T], keys: Sequence[Sequence[str]]) -> list[list[T]]:
    """Join items by what they share, their own id included."""
    first: dict[str, int] = {}
    parent = list(range(len(items)))
    for number, item in enumerate(items):
        for key in (f"item {item.id}", *keys[number]):
            other = first.setdefault(key, number)
            parent[_root(parent, number)] = _root(parent, other)
    groups: dict[int, list[T]] = defaultdict(list)
    for number, item in enumerate(items):
        groups[_root(parent, number)].append(item)
    return list(groups.values())


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def split_records(
    records: Sequence[Record],
    *,
    validation: float,
    test: float,
    seed: int,
    near: float | None = None,
    by_source: bool = False,
) -> dict[str, list[Record]]:
    """Deal whole `leak_groups` to train, validation and test, evenly over decision and language.

    The order inside a stratum comes from a hash of seed and group, so adding a record moves few
    others. Each split keeps the records' order.
    """
    strata: dict[tuple[str, ...], list[list[Record]]] = defaultdict(list)
    for group in leak_groups(records, near=near, by_source=by_source):
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


def split_pairs(
    pairs: Sequence[Pair], *, near: float, validation: float, test: float, seed: int
) -> list[Pair]:
    """Return the pairs with their split, nearly the same prompts in one."""
    split = {
        pair.id: pick_split(min(p.id for p in group), validation=validation, test=test, seed=seed)
        for group in leak_groups(pairs, near=near)
        for pair in group
    }
    return [replace(pair, split=split[pair.id]) for pair in pairs]


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
