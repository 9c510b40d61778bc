"""Which texts of many are near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence

from aegis.data.clean import SimilarTexts


def near_duplicates(texts: Sequence[str], *, threshold: float) -> list[tuple[int, int]]:
    """Return (later, earlier) of texts that are alike; what is like another is no `earlier` itself,
    so that many copies of one text cost no more than as many texts."""
    index, pairs = SimilarTexts(threshold), []
    for number, text in enumerate(texts):
        alike = index.alike(text)
        pairs += [(number, other) for other in alike]
        if not alike:
            index.add(number, text)
    return pairs
