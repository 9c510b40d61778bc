"""De-duplicate, filter by quality, balance; every record that goes has a reason."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from datasketch import MinHash, MinHashLSH

from aegis.config import QualitySettings
from aegis.data.records import Pair, Record, Rejected, detect_language
from aegis.decisions import Decision

T = TypeVar("T", Record, Pair)
_PERMUTATIONS = 128
_SHINGLE = 4


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
) -> Cleaned:
    """Run the steps in order: length, quality, duplicates among records and of pairs with records, balance.

    Args:
        too_long: why the model could not read a prompt, or None.
    """
    rejected: list[Rejected] = []
    kept = _reject_if(records, lambda record: too_long(record.prompt) or quality_problem(record, settings), rejected)
    kept = _without_duplicates(kept, settings.near_duplicate, rejected)
    good_pairs = _reject_if(pairs, lambda pair: too_long(pair.prompt) or pair_problem(pair, settings), rejected)
    good_pairs = _without_copies(good_pairs, kept, settings.near_duplicate, rejected)
    kept = _balance(kept, settings.balance_ratio, rejected)
    return Cleaned(kept, good_pairs, rejected)


def pair_problem(pair: Pair, settings: QualitySettings) -> str | None:
    """Why one of the pair's sides is not good enough, or None."""
    for side in (pair.chosen, pair.rejected):
        record = Record(pair.id, pair.prompt, side.decision, pair.language, pair.domain, thinking=side.thinking)
        if problem := quality_problem(record, settings):
            return problem
    return None


def quality_problem(record: Record, settings: QualitySettings) -> str | None:
    """Why the record is not good enough, or None."""
    parts = {"prompt": record.prompt}
    if record.thinking:
        parts |= {name: text.reveal() for name, text in record.thinking.bodies().items()}
        parts["answer"] = record.thinking.public
    for name, text in parts.items():
        if len(text) < settings.min_characters:
            return f"{name} shorter than {settings.min_characters} characters"
        if len(text) > settings.max_characters:
            return f"{name} longer than {settings.max_characters} characters"
        if repetition(text) > settings.max_repetition:
            return f"{name} repeats itself"
        if name != "prompt" and record.language == "ja" and detect_language(text) != "ja":
            return f"{name} is not Japanese"
        if "\ufffd" in text:
            return f"{name} holds broken characters"
    seen: dict[str, str] = {}
    for name, text in parts.items():
        if (first := seen.setdefault(normalise(text), name)) != name:
            return f"{name} only repeats the {first}"
    return None


def repetition(text: str) -> float:
    """Share of the text's windows that occurred before: near 0 for prose, near 1 for a stuck generator.

    Windows are 6 characters wide, 2 in texts under 25 characters (a stuck generator stops early in Japanese, too).
    """
    width = 6 if len(text) >= 25 else 2
    windows = [text[i : i + width] for i in range(len(text) - width + 1)]
    return 0.0 if len(windows) < 8 else 1 - len(set(windows)) / len(windows)


def normalise(text: str) -> str:
    """NFKC, lower case, one space for any white space, no punctuation: what counts as the same prompt."""
    plain = unicodedata.normalize("NFKC", text).lower()
    return re.sub(r"\s+", " ", re.sub(r"[^\w\s]", " ", plain)).strip()


def near_duplicates(texts: Sequence[str], *, threshold: float) -> list[tuple[int, int]]:
    """Pairs (later, earlier) of texts whose estimated Jaccard similarity of 4-character shingles reaches the threshold.

    Source:
        MinHash: Broder, On the resemblance and containment of documents, 1997.
    """
    index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
    sketches: list[MinHash] = []
    found: list[tuple[int, int]] = []
    for number, text in enumerate(texts):
        sketch = _sketch(text)
        for other in sorted(int(str(key)) for key in index.query(sketch)):
            if sketch.jaccard(sketches[other]) >= threshold:
                found.append((number, other))
        index.insert(str(number), sketch)
        sketches.append(sketch)
    return found


def _sketch(text: str) -> MinHash:
    plain = normalise(text)
    sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
    sketch.update_batch([plain[i : i + _SHINGLE].encode() for i in range(max(1, len(plain) - _SHINGLE + 1))])
    return sketch


def _reject_if(items: Sequence[T], problem: Callable[[T], str | None], rejected: list[Rejected]) -> list[T]:
    kept: list[T] = []
    for item in items:
        if reason := problem(item):
            rejected.append(Rejected(item.id, reason, item.to_json()))
        else:
            kept.append(item)
    return kept


def _without_duplicates(records: list[Record], threshold: float, rejected: list[Rejected]) -> list[Record]:
    """Drop later copies. Twins of one contrast group are alike on purpose and stay, unless they are the same prompt."""
    reasons: dict[int, str] = {}
    seen: dict[str, int] = {}
    for number, record in enumerate(records):
        first = seen.setdefault(normalise(record.prompt), number)
        if first != number:
            same = records[first].decision == record.decision
            what = "the same prompt as" if same else "the same prompt with another decision as"
            reasons[number] = f"{what} {records[first].id}"
    for later, earlier in near_duplicates([record.prompt for record in records], threshold=threshold):
        if later not in reasons and earlier not in reasons and not _twins(records[later], records[earlier]):
            reasons[later] = f"nearly the same prompt as {records[earlier].id}"
    for number, reason in reasons.items():
        rejected.append(Rejected(records[number].id, reason, records[number].to_json()))
    return [record for number, record in enumerate(records) if number not in reasons]


def _without_copies(pairs: list[Pair], records: list[Record], threshold: float, rejected: list[Rejected]) -> list[Pair]:
    """Drop pairs whose prompt is nearly a record's: their chosen sides train, and the record may be held out."""
    prompts = [record.prompt for record in records] + [pair.prompt for pair in pairs]
    copies = {later: earlier for later, earlier in near_duplicates(prompts, threshold=threshold) if earlier < len(records)}

    def problem(pair: Pair) -> str | None:
        earlier = copies.get(len(records) + number[pair.id])
        return None if earlier is None else f"nearly the same prompt as {records[earlier].id}"

    number = {pair.id: place for place, pair in enumerate(pairs)}
    return _reject_if(pairs, problem, rejected)


def _twins(one: Record, other: Record) -> bool:
    group = {name for name in (one.contrast_of, other.contrast_of) if name}
    return bool(group & {one.id, other.id}) or (one.contrast_of is not None and one.contrast_of == other.contrast_of)


def _balance(records: list[Record], ratio: float, rejected: list[Rejected]) -> list[Record]:
    """No decision keeps more than `ratio` times the rarest one's records; lone records go first, then from the end."""
    counts = Counter(record.decision for record in records)
    if len(counts) < len(Decision):
        return records
    limit = int(min(counts.values()) * ratio)
    linked = {record.contrast_of for record in records} - {None}
    surplus: dict[Decision, int] = defaultdict(int, {decision: count - limit for decision, count in counts.items()})
    dropped: set[str] = set()
    for record in reversed(records):
        lone = record.contrast_of is None and record.id not in linked
        if surplus[record.decision] > 0 and lone:
            surplus[record.decision] -= 1
            dropped.add(record.id)
            reason = f"{record.decision.name} is over {ratio:g} times the rarest decision"
            rejected.append(Rejected(record.id, reason, record.to_json()))
    return [record for record in records if record.id not in dropped]
