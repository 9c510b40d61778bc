"""What items are like before and after, counted shard by shard and put together."""

from __future__ import annotations

from typing import Any

from aegis.data.records import Item
from aegis.data.report import Statistics

_GROUPS = ("facets", "lengths", "quality")


def count_item(statistics: Statistics, item: Item, told: list[dict[str, Any]]) -> None:
    """Count the item, and the parts of its quality score."""
    statistics.add(item)
    for note in told:
        for name, part in note.get("score", {}).items():
            statistics.add_quality(name, part)


def pack(statistics: Statistics) -> dict[str, Any]:
    """Return what `unpack` takes, as JSON."""
    return {
        group: {name: dict(counts) for name, counts in getattr(statistics, group).items()}
        for group in _GROUPS
    }


def unpack(statistics: Statistics, packed: dict[str, Any]) -> None:
    """Add the counts of a shard."""
    for group in _GROUPS:
        for name, counts in packed[group].items():
            getattr(statistics, group)[name].update(counts)


def take_away(statistics: Statistics, gone: Statistics) -> None:
    """Take the counts of some of the items away."""
    for group in _GROUPS:
        for name, counts in getattr(gone, group).items():
            mine = getattr(statistics, group)[name]
            mine.subtract(counts)
            for value in [value for value, count in mine.items() if count <= 0]:
                del mine[value]
