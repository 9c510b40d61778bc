"""Filter by quality, remove duplicates, balance; every record that goes has a reason."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from datasketch import MinHash, MinHashLSH

from aegis.config import QualitySettings
from aegis.data.records import Pair, Record, Rejected
from aegis.protocol.decisions import Decision
from aegis.protocol.language import detect_language
from aegis.protocol.thinking import Thinking
from aegis.runs.reporter import bar
from aegis.storage.journal import Remember, compute_anew

T = TypeVar("T", Record, Pair)
_PERMUTATIONS = 128
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
    kept, sketches = _examine(
        "records",
        records,
        lambda record: too_long(record.prompt) or quality_problem(record, settings),
        remember=remember,
        rejected=rejected,
    )
    kept, sketches = _without_duplicates(kept, sketches, near, rejected)
    kept_pairs, pair_sketches = _examine(
        "pairs",
        pairs,
        lambda pair: too_long(pair.prompt) or pair_problem(pair, settings),
        remember=remember,
        rejected=rejected,
    )
    kept_pairs = _without_copies(kept_pairs, kept, sketches + pair_sketches, near, rejected)
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


def near_duplicates(texts: Sequence[str], *, threshold: float) -> list[tuple[int, int]]:
    """Return (later, earlier) of texts whose 4-character shingles have this Jaccard similarity.

    Source:
        MinHash estimates it: Broder, On the resemblance and containment of documents, 1997.
    """
    return near_sketches([_sketch(text) for text in texts], threshold=threshold)


def near_sketches(sketches: Sequence[MinHash], *, threshold: float) -> list[tuple[int, int]]:
    """Return the same as `near_duplicates`, of texts that have been sketched already."""
    index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
    alike: list[tuple[int, int]] = []
    for number, sketch in enumerate(sketches):
        for other in sorted(int(str(key)) for key in index.query(sketch)):
            if sketch.jaccard(sketches[other]) >= threshold:
                alike.append((number, other))
        index.insert(str(number), sketch)
    return alike


def _sketch(text: str) -> MinHash:
    plain = normalise(text)
    sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
    sketch.update_batch(
        [plain[i : i + _SHINGLE].encode() for i in range(max(1, len(plain) - _SHINGLE + 1))]
    )
    return sketch


def _examine(
    kind: str,
    items: Sequence[T],
    problem: Callable[[T], str | None],
    *,
    remember: Remember,
    rejected: list[Rejected],
) -> tuple[list[T], list[MinHash]]:
    """Return the items without a problem and the sketches of their prompts; reject the others."""
    findings: list[list[str | None]] = []
    with bar(f"looking at {kind}", len(items)) as advance:
        for start in range(0, len(items), _SHARD):
            shard = items[start : start + _SHARD]
            findings += remember(
                f"{kind} {start}", lambda shard=shard: [_finding(item, problem) for item in shard]
            )
            advance(len(shard))
    kept, sketches = [], []
    for item, (reason, sketch) in zip(items, findings, strict=True):
        if sketch is None:
            rejected.append(Rejected.item(item, str(reason)))
        else:
            kept.append(item)
            sketches.append(_unpack(sketch))
    return kept, sketches


def _finding(item: T, problem: Callable[[T], str | None]) -> list[str | None]:
    """Return why the item goes, or None, and the sketch of its prompt in hexadecimal."""
    if reason := problem(item):
        return [reason, None]
    return [None, _sketch(item.prompt).hashvalues.astype("<u8").tobytes().hex()]


def _unpack(hexadecimal: str) -> MinHash:
    sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
    sketch.hashvalues = np.frombuffer(bytes.fromhex(hexadecimal), dtype="<u8")
    return sketch


def _without_duplicates(
    records: list[Record], sketches: list[MinHash], threshold: float, rejected: list[Rejected]
) -> tuple[list[Record], list[MinHash]]:
    """Drop later copies.

    Twins of one contrast group are alike on purpose and stay, unless they are the same prompt.
    """
    reasons: dict[int, str] = {}
    seen: dict[str, int] = {}
    for number, record in enumerate(records):
        first = seen.setdefault(normalise(record.prompt), number)
        if first != number:
            other = "" if records[first].decision == record.decision else " with another decision"
            reasons[number] = f"the same prompt{other} as {records[first].id}"
    for later, earlier in near_sketches(sketches, threshold=threshold):
        twins = _are_twins(records[later], records[earlier])
        if not twins and reasons.keys().isdisjoint((later, earlier)):
            reasons[later] = f"nearly the same prompt as {records[earlier].id}"
    rejected += [Rejected.item(records[number], reason) for number, reason in reasons.items()]
    kept = [number for number in range(len(records)) if number not in reasons]
    return [records[number] for number in kept], [sketches[number] for number in kept]


def _without_copies(
    pairs: list[Pair],
    records: list[Record],
    sketches: list[MinHash],
    threshold: float,
    rejected: list[Rejected],
) -> list[Pair]:
    """Drop pairs whose prompt is nearly a record's.

    Their chosen sides train, and the record may be held out.

    Args:
        sketches: of the records' prompts, then of the pairs'.
    """
    first = len(records)
    copies = {
        later - first: records[earlier].id
        for later, earlier in near_sketches(sketches, threshold=threshold)
        if earlier < first <= later
    }
    rejected += [
        Rejected.item(pairs[number], f"nearly the same prompt as {original}")
        for number, original in sorted(copies.items())
    ]
    return [pair for number, pair in enumerate(pairs) if number not in copies]


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
