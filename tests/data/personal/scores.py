"""Recall and precision of a detector on labelled strings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.data.personal.labelled import Labelled

Found = Sequence[tuple[int, int, str]]


@dataclass(frozen=True)
class Score:
    """How many marked spans are wholly covered, and how many found ones touch a marked span."""

    marked: int
    covered: int
    found: int
    right: int

    @property
    def wrong(self) -> int:
        return self.marked - self.covered + self.found - self.right

    @property
    def recall(self) -> float:
        return self.covered / self.marked

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 1.0


def score(
    rows: Iterable[Labelled], find: Callable[[str], Found], *, any_kind: bool = False
) -> Score:
    """Count over all rows; a span counts for its own kind only, unless `any_kind` is asked for."""
    marked = covered = found = right = 0
    for row in rows:
        spans = find(row.text)
        for start, end, kind in row.spans:
            places = {
                place for a, b, other in spans if any_kind or other == kind for place in range(a, b)
            }
            marked += 1
            covered += places.issuperset(range(start, end))
        for a, b, other in spans:
            found += 1
            right += any(
                a < end and start < b and (any_kind or other == kind)
                for start, end, kind in row.spans
            )
    return Score(marked, covered, found, right)
