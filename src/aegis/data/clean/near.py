"""Which texts are alike: sketches find candidates, and each is then compared exactly.

Source:
    MinHash and its bands: Broder, On the resemblance and containment of documents, 1997.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue]

from aegis.data.clean.texts import normalise
from aegis.protocol.decisions import Decision

_PERMUTATIONS, _SEED, _SHINGLE = 128, 1, 4
_BANDS = (2, 4, 8, 16, 32, 64, 128)
_RECALL = 0.85  # of pairs that are just as alike as the threshold; 0.96 of all above 0.8
_MIX = np.uint64(0x9E3779B97F4A7C15)
HELD_OUT, RECORD, PAIR, PLAIN = range(4)
_REMEMBERED, _MOST_COMPARED = 4096, 100


class SimilarTexts:
    """An index in memory of texts by the Jaccard similarity of their 4-character shingles.

    Args:
        threshold: from which two texts are alike.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._index = RMinHashLSH(threshold, _PERMUTATIONS, bands_for(threshold))
        self._texts: dict[int, str] = {}

    def alike(self, text: str) -> list[int]:
        """Return the numbers of the added texts that are alike, in order."""
        shingles = _shingles(normalise(text))
        return [
            number
            for number in sorted(self._index.query(_sketch(shingles)))
            if _similarity(shingles, _shingles(self._texts[number])) >= self.threshold
        ]

    def add(self, number: int, text: str) -> None:
        self._texts[number] = normalise(text)
        self._index.insert(number, _sketch(_shingles(self._texts[number])))


@dataclass(frozen=True)
class Prompt:
    """What is compared of an item.

    Args:
        text: as `normalise` makes it.
        kind: HELD_OUT, RECORD, PAIR or PLAIN.
    """

    id: str
    text: str
    kind: int
    decision: Decision | None = None
    contrast_of: str | None = None


@dataclass(frozen=True)
class Copy:
    """Of which prompt one is a copy, how alike they are, and the reason for people."""

    other: str
    similarity: float
    reason: str


def bands_for(threshold: float) -> int:
    """Return the fewest bands that find 0.85 of the pairs just as alike as the threshold."""
    return next(n for n in _BANDS if n == _BANDS[-1] or _recall(n, threshold) >= _RECALL)


def band_keys(texts: Sequence[str], threshold: float) -> NDArray[np.uint64]:
    """Return (bands, texts): texts that share a key in any band are candidates.

    Args:
        texts: as `normalise` makes them.
    """
    bands = bands_for(threshold)
    if not texts:
        return np.empty((bands, 0), np.uint64)
    hashes, starts = _hashed(texts)
    sketches = RMinHash.digest_matrix_from_flat_token_hashes(hashes, starts, _PERMUTATIONS, _SEED)
    rows = np.asarray(sketches.to_rows(), np.uint64).reshape(len(texts), bands, -1)
    keys = np.zeros((bands, len(texts)), np.uint64)
    for place in range(rows.shape[2]):
        keys = (keys ^ rows[:, :, place].T) * _MIX
        keys ^= keys >> np.uint64(32)
    return keys


def find_copies(
    kinds: NDArray[np.uint8],
    exact: NDArray[np.uint64],
    bands: Iterable[NDArray[np.uint64]],
    prompt: Callable[[int], Prompt],
    threshold: float,
) -> dict[int, Copy]:
    """Return which items are copies of an earlier one that stays, by their numbers.

    Held-out prompts come before records, records before pairs, pairs before plain texts; within a
    kind the first stays. Twins of one contrast group are alike on purpose and stay, unless they are
    the same prompt. Pairs are compared with held-out prompts and records: their chosen sides train,
    and the record may be held out. One band is in memory at a time, and only candidates' texts.

    Args:
        kinds: (n,) of each item.
        exact: (n,) a hash of each text.
        bands: (n,) keys, one band after the other.
        prompt: the prompt of an item.
    """
    order = np.argsort(kinds, kind="stable")
    groups = [_shared(exact[order])]
    same = int(groups[0][1][-1]) + 1 if len(groups[0][1]) else 0
    count = same
    for keys in bands:
        positions, numbers = _shared(keys[order])
        groups.append((positions, numbers + np.uint32(count)))
        count += int(numbers[-1]) + 1 if len(numbers) else 0
    search = _Search(prompt, threshold, same)
    copies: dict[int, Copy] = {}
    for position, of in _by_position(groups):
        item = int(order[position])
        if copy := search.copy_of(item, of):
            copies[item] = copy
    return copies


class _Search:
    """Goes over prompts that share a key with another, in order, and remembers which stay.

    Args:
        same: groups below this number hold equal texts, the others candidates.
    """

    def __init__(self, prompt: Callable[[int], Prompt], threshold: float, same: int) -> None:
        self.threshold, self.same = threshold, same
        self._first: dict[int, int] = {}
        self._kept: dict[int, list[int]] = defaultdict(list)
        self._prompt = functools.lru_cache(_REMEMBERED)(prompt)
        self._shingles = functools.lru_cache(_REMEMBERED)(lambda n: _shingles(prompt(n).text))

    def copy_of(self, item: int, groups: list[int]) -> Copy | None:
        """Return what the item is a copy of; if it is none, let later ones be compared with it."""
        mine = self._prompt(item)
        equal = [group for group in groups if group < self.same]
        near = [group for group in groups if group >= self.same]
        copy = None
        if mine.kind != HELD_OUT:
            copy = self._equal(mine, equal) or self._near(item, mine, near)
        if copy is None and mine.kind != PAIR:
            for group in near:
                self._kept[group].append(item)
            for group in equal:
                self._first.setdefault(group, item)
        return copy

    def _equal(self, mine: Prompt, groups: list[int]) -> Copy | None:
        if mine.kind == PAIR:
            return None
        for group in groups:
            first = self._prompt(self._first[group]) if group in self._first else mine
            if first is not mine and first.text == mine.text:
                decisions = {mine.decision, first.decision} - {None}
                other = " with another decision" if len(decisions) > 1 else ""
                return Copy(first.id, 1.0, f"the same prompt{other} as {_named(first)}")
        return None

    def _near(self, item: int, mine: Prompt, groups: list[int]) -> Copy | None:
        for other in self._candidates(groups):
            similarity = _similarity(self._shingles(item), self._shingles(other))
            if similarity >= self.threshold and not are_twins(mine, self._prompt(other)):
                twin = self._prompt(other)
                reason = f"nearly the same prompt as {_named(twin)}"
                return Copy(twin.id, round(similarity, 4), reason)
        return None

    def _candidates(self, groups: list[int]) -> list[int]:
        """Return what stays of these groups, in order; of many, the latest of the smallest groups.

        Texts of one template fill a few groups: without a limit each would be compared with all.
        """
        found: set[int] = set()
        for group in sorted(groups, key=lambda group: len(self._kept[group])):
            if (room := _MOST_COMPARED - len(found)) <= 0:
                break
            found.update(self._kept[group][-room:])
        return sorted(found)


def are_twins(one: Prompt, other: Prompt) -> bool:
    """Return whether `contrast_of` links the two, or both to a third."""
    if HELD_OUT in (one.kind, other.kind):
        return False
    groups = {one.contrast_of, other.contrast_of} - {None}
    return bool(groups & {one.id, other.id}) or (
        one.contrast_of is not None and one.contrast_of == other.contrast_of
    )


def _named(prompt: Prompt) -> str:
    return f"held-out {prompt.id}" if prompt.kind == HELD_OUT else prompt.id


def _shared(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return positions and group numbers of keys that stand more than once."""
    order = np.argsort(keys, kind="stable").astype(np.uint32)
    ordered = keys[order]
    first = np.r_[True, ordered[1:] != ordered[:-1]] if len(keys) else np.empty(0, bool)
    follows = ~first
    member = follows | np.r_[follows[1:], False] if len(keys) else follows
    numbers = np.cumsum(first & member, dtype=np.uint32) - np.uint32(1)
    return order[member], numbers[member]


def _by_position(
    groups: Sequence[tuple[NDArray[np.uint32], NDArray[np.uint32]]],
) -> Iterator[tuple[int, list[int]]]:
    """Yield each position with the groups that it is in."""
    positions = np.concatenate([part for part, _ in groups])
    numbers = np.concatenate([part for _, part in groups])
    order = np.argsort(positions, kind="stable")
    positions, numbers = positions[order], numbers[order]
    starts = np.flatnonzero(np.r_[True, positions[1:] != positions[:-1]]) if len(positions) else []
    ends = np.r_[starts[1:], len(positions)] if len(positions) else []
    for start, end in zip(starts, ends, strict=True):
        yield int(positions[start]), numbers[start:end].tolist()


def _recall(bands: int, similarity: float) -> float:
    """Return the share of pairs this alike that fall into one band at least."""
    return 1 - (1 - similarity ** (_PERMUTATIONS // bands)) ** bands


def _hashed(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return hashes of all shingles, and where each text's begin; a short text is one shingle."""
    padded = [text.ljust(_SHINGLE, "\0") for text in texts]
    ends = np.cumsum([0, *map(len, padded)])
    codes = np.frombuffer("".join(padded).encode("utf-32-le"), np.uint32).astype(np.uint64)
    hashes = codes.copy()
    for place in range(1, _SHINGLE):
        hashes[:-place] = (hashes[:-place] ^ hashes[:-place] >> np.uint64(29)) * _MIX
        hashes[:-place] += codes[place:]
    hashes = (hashes ^ hashes >> np.uint64(32)) * _MIX
    inside = np.ones(len(hashes), bool)
    for place in range(1, _SHINGLE):
        inside[ends[1:] - place] = False
    starts = ends - (_SHINGLE - 1) * np.arange(len(ends))
    return hashes[inside], starts


def _shingles(plain: str) -> set[str]:
    return {plain[i : i + _SHINGLE] for i in range(max(1, len(plain) - _SHINGLE + 1))}


def _similarity(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def _sketch(shingles: set[str]) -> RMinHash:
    sketch = RMinHash(_PERMUTATIONS, _SEED)
    sketch.update(list(shingles))
    return sketch
