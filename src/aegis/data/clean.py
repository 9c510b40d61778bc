"""Filter by quality, remove duplicates, balance; every record that goes has a reason."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue]

from aegis.config import QualitySettings
from aegis.data.records import Pair, Record, Rejected
from aegis.protocol.decisions import Decision
from aegis.protocol.language import detect_language
from aegis.protocol.thinking import Thinking
from aegis.runs.reporter import bar
from aegis.storage.journal import Remember, compute_anew

T = TypeVar("T", Record, Pair)
_PERMUTATIONS = 128
_BANDS = (2, 4, 8, 16, 32, 64, 128)
_RECALL = 0.85  # of pairs that are just as alike as the threshold; 0.96 of all above 0.8
_SHINGLE = 4
_SHARD = 500


@dataclass(frozen=True)
class Cleaned:
    """What is left, and what went and why."""

    records: list[Record]
    pairs: list[Pair]
    rejected: list[Rejected]


def clean(
    records: Sequence[Record],
    pairs: Sequence[Pair],
    settings: QualitySettings,
    *,
    too_long: Callable[[str], str | None] = lambda _: None,
    remember: Remember = compute_anew,
) -> Cleaned:
    """Apply in order: length, quality, duplicates among records and of pairs with records, balance.

    Items are examined in shards, so that a killed run does not do a finished shard again.

    Args:
        too_long: why the model could not read a prompt, or None.
        remember: (key, make) → what `make` gives, perhaps from an earlier time.
    """
    rejected: list[Rejected] = []

    near = settings.near_duplicate
    kept = _examine(
        "records",
        records,
        lambda record: too_long(record.prompt) or quality_problem(record, settings),
        remember=remember,
        rejected=rejected,
    )
    kept = _without_duplicates(kept, near, rejected)
    kept_pairs = _examine(
        "pairs",
        pairs,
        lambda pair: too_long(pair.prompt) or pair_problem(pair, settings),
        remember=remember,
        rejected=rejected,
    )
    kept_pairs = _without_copies(kept_pairs, kept, near, rejected)
    kept = _balance(kept, settings.balance_ratio, rejected)
    return Cleaned(kept, kept_pairs, rejected)


def pair_problem(pair: Pair, settings: QualitySettings) -> str | None:
    """Return why one of the pair's sides is not good enough, or None."""
    for side in (pair.chosen, pair.rejected):
        if problem := _text_problem(pair.prompt, side.thinking, pair.language, settings):
            return problem
    return None


def quality_problem(record: Record, settings: QualitySettings) -> str | None:
    """Return why the record is not good enough, or None."""
    return _text_problem(record.prompt, record.thinking, record.language, settings)


def _text_problem(
    prompt: str, thinking: Thinking | None, language: str, settings: QualitySettings
) -> str | None:
    parts = {"prompt": prompt}
    if thinking:
        parts |= {name: text.reveal() for name, text in thinking.bodies().items()}
        parts["answer"] = thinking.public
    for name, text in parts.items():
        if len(text) < settings.min_characters:
            return f"{name} shorter than {settings.min_characters} characters"
        if len(text) > settings.max_characters:
            return f"{name} longer than {settings.max_characters} characters"
        if repetition(text) > settings.max_repetition:
            return f"{name} repeats itself"
        if name != "prompt" and language == "ja" and detect_language(text) != "ja":
            return f"{name} is not Japanese"
        if "\ufffd" in text:
            return f"{name} holds broken characters"
    seen: dict[str, str] = {}
    for name, text in parts.items():
        if (first := seen.setdefault(normalise(text), name)) != name:
            return f"{name} only repeats the {first}"
    return None


def repetition(text: str) -> float:
    """Return the share of windows that occurred before: near 0 for prose, 1 for a stuck generator.

    Windows are 6 characters wide, 2 in texts under 25 characters (a stuck generator stops early in
    Japanese, too).
    """
    width = 6 if len(text) >= 25 else 2
    windows = [text[i : i + width] for i in range(len(text) - width + 1)]
    return 0.0 if len(windows) < 8 else 1 - len(set(windows)) / len(windows)


def normalise(text: str) -> str:
    """Return what makes two prompts the same: NFKC, lower case, one space, no punctuation."""
    plain = unicodedata.normalize("NFKC", text).lower()
    return re.sub(r"\s+", " ", re.sub(r"[^\w\s]", " ", plain)).strip()


class SimilarTexts:
    """An index of texts by the Jaccard similarity of their 4-character shingles.

    Args:
        threshold: from which two texts are alike.

    Source:
        MinHash and its bands find candidates: Broder, On the resemblance and containment of
        documents, 1997. Each candidate is then compared exactly.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        bands = next(n for n in _BANDS if n == _BANDS[-1] or _recall(n, threshold) >= _RECALL)
        self._index = RMinHashLSH(threshold, _PERMUTATIONS, bands)
        self._texts: dict[int, str] = {}

    def alike(self, text: str) -> list[int]:
        """Return the numbers of the added texts that are alike, in order."""
        shingles = _shingles(text)
        return [
            number
            for number in sorted(self._index.query(_sketch(shingles)))
            if _similarity(shingles, _shingles(self._texts[number])) >= self.threshold
        ]

    def add(self, number: int, text: str) -> None:
        self._index.insert(number, _sketch(_shingles(text)))
        self._texts[number] = text


def _recall(bands: int, similarity: float) -> float:
    """Return the share of pairs this alike that fall into one band at least."""
    return 1 - (1 - similarity ** (_PERMUTATIONS // bands)) ** bands


def _shingles(text: str) -> set[str]:
    plain = normalise(text)
    return {plain[i : i + _SHINGLE] for i in range(max(1, len(plain) - _SHINGLE + 1))}


def _similarity(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def _sketch(shingles: set[str]) -> RMinHash:
    sketch = RMinHash(_PERMUTATIONS, 1)
    sketch.update(list(shingles))
    return sketch


def _examine(
    kind: str,
    items: Sequence[T],
    problem: Callable[[T], str | None],
    *,
    remember: Remember,
    rejected: list[Rejected],
) -> list[T]:
    """Return the items without a problem; reject the others."""
    findings: list[str | None] = []
    with bar(f"looking at {kind}", len(items)) as advance:
        for start in range(0, len(items), _SHARD):
            shard = items[start : start + _SHARD]
            findings += remember(
                f"{kind} {start}", lambda shard=shard: [problem(item) for item in shard]
            )
            advance(len(shard))
    reasons = list(zip(items, findings, strict=True))
    rejected += [Rejected.item(item, reason) for item, reason in reasons if reason]
    return [item for item, reason in reasons if not reason]


def _without_duplicates(
    records: list[Record], threshold: float, rejected: list[Rejected]
) -> list[Record]:
    """Drop later copies.

    Twins of one contrast group are alike on purpose and stay, unless they are the same prompt.
    """
    kept: list[Record] = []
    index = SimilarTexts(threshold)
    seen: dict[str, Record] = {}
    for record in records:
        first = seen.setdefault(normalise(record.prompt), record)
        reason = None
        if first is not record:
            other = "" if first.decision == record.decision else " with another decision"
            reason = f"the same prompt{other} as {first.id}"
        else:
            strangers = [
                kept[number].id
                for number in index.alike(record.prompt)
                if not _are_twins(record, kept[number])
            ]
            reason = f"nearly the same prompt as {strangers[0]}" if strangers else None
        if reason:
            rejected.append(Rejected.item(record, reason))
        else:
            index.add(len(kept), record.prompt)
            kept.append(record)
    return kept


def _without_copies(
    pairs: list[Pair], records: list[Record], threshold: float, rejected: list[Rejected]
) -> list[Pair]:
    """Drop pairs whose prompt is nearly a record's.

    Their chosen sides train, and the record may be held out.
    """
    index, kept = SimilarTexts(threshold), []
    for number, record in enumerate(records):
        index.add(number, record.prompt)
    for pair in pairs:
        if alike := index.alike(pair.prompt):
            reason = f"nearly the same prompt as {records[alike[0]].id}"
            rejected.append(Rejected.item(pair, reason))
        else:
            kept.append(pair)
    return kept


def _are_twins(one: Record, other: Record) -> bool:
    groups = {one.contrast_of, other.contrast_of} - {None}
    return bool(groups & {one.id, other.id}) or (
        one.contrast_of is not None and one.contrast_of == other.contrast_of
    )


def _balance(records: list[Record], ratio: float, rejected: list[Rejected]) -> list[Record]:
    """Drop lone records, from the end, of a decision that has over `ratio` times the rarest's."""
    counts = Counter(record.decision for record in records)
    if len(counts) < len(Decision):
        return records
    limit = int(min(counts.values()) * ratio)
    linked = {record.contrast_of for record in records} - {None}
    surplus: dict[Decision, int] = defaultdict(
        int, {decision: count - limit for decision, count in counts.items()}
    )
    dropped: set[str] = set()
    for record in reversed(records):
        lone = record.contrast_of is None and record.id not in linked
        if surplus[record.decision] > 0 and lone:
            surplus[record.decision] -= 1
            dropped.add(record.id)
            reason = f"{record.decision.name} is over {ratio:g} times the rarest decision"
            rejected.append(Rejected.item(record, reason))
    return [record for record in records if record.id not in dropped]
