"""De-duplicate, filter by quality, balance; every record that goes has a reason."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from datasketch import MinHash, MinHashLSH

from aegis.config import QualitySettings
from aegis.data.records import Pair, Record, Rejected
from aegis.protocol.decisions import Decision
from aegis.protocol.language import detect_language
from aegis.runs.reporter import bar

T = TypeVar("T", Record, Pair)
Remember = Callable[[str, Callable[[], Any]], Any]
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
    remember: Remember = lambda _, make: make(),
) -> Cleaned:
    """Run the steps in order: length, quality, duplicates among records and of pairs with records,
    balance.

    What each item needs looking at for is done in shards, so that a killed run does not do a
    finished shard again.

    Args:
        too_long: why the model could not read a prompt, or None.
        remember: (key, make) → what `make` gives, perhaps from an earlier time.
    """
    rejected: list[Rejected] = []

    def looked_at(
        kind: str, items: Sequence[T], problem: Callable[[T], str | None]
    ) -> tuple[list[T], list[MinHash]]:
        found: list[Any] = []
        with bar(f"looking at {kind}", len(items)) as advance:
            for start in range(0, len(items), _SHARD):
                shard = items[start : start + _SHARD]
                found += remember(
                    f"{kind} {start}", lambda shard=shard: [_look(item, problem) for item in shard]
                )
                advance(len(shard))
        good = [
            (item, sketch)
            for item, (reason, sketch) in zip(items, found, strict=True)
            if reason is None
        ]
        bad = zip(items, found, strict=True)
        rejected.extend(
            Rejected(item.id, reason, item.to_json()) for item, (reason, _) in bad if reason
        )
        return [item for item, _ in good], [_unpack(sketch) for _, sketch in good]

    kept, sketches = looked_at(
        "records", records, lambda one: too_long(one.prompt) or quality_problem(one, settings)
    )
    kept, sketches = _without_duplicates(kept, sketches, settings.near_duplicate, rejected)
    good_pairs, pair_sketches = looked_at(
        "pairs", pairs, lambda one: too_long(one.prompt) or pair_problem(one, settings)
    )
    good_pairs = _without_copies(
        good_pairs, kept, sketches + pair_sketches, settings.near_duplicate, rejected
    )
    kept = _balance(kept, settings.balance_ratio, rejected)
    return Cleaned(kept, good_pairs, rejected)


def pair_problem(pair: Pair, settings: QualitySettings) -> str | None:
    """Why one of the pair's sides is not good enough, or None."""
    for side in (pair.chosen, pair.rejected):
        record = Record(
            pair.id, pair.prompt, side.decision, pair.language, pair.domain, thinking=side.thinking
        )
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
    """Share of the text's windows that occurred before: near 0 for prose, near 1 for a stuck
    generator.

    Windows are 6 characters wide, 2 in texts under 25 characters (a stuck generator stops early in
    Japanese, too).
    """
    width = 6 if len(text) >= 25 else 2
    windows = [text[i : i + width] for i in range(len(text) - width + 1)]
    return 0.0 if len(windows) < 8 else 1 - len(set(windows)) / len(windows)


def normalise(text: str) -> str:
    """NFKC, lower case, one space for any white space, no punctuation: what counts as the same
    prompt."""
    plain = unicodedata.normalize("NFKC", text).lower()
    return re.sub(r"\s+", " ", re.sub(r"[^\w\s]", " ", plain)).strip()


def near_duplicates(texts: Sequence[str], *, threshold: float) -> list[tuple[int, int]]:
    """Pairs (later, earlier) of texts whose estimated Jaccard similarity of 4-character shingles
    reaches the threshold.

    Source:
        MinHash: Broder, On the resemblance and containment of documents, 1997.
    """
    return near_sketches([_sketch(text) for text in texts], threshold=threshold)


def near_sketches(sketches: Sequence[MinHash], *, threshold: float) -> list[tuple[int, int]]:
    """As `near_duplicates`, of texts that have been sketched already."""
    index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
    found: list[tuple[int, int]] = []
    for number, sketch in enumerate(sketches):
        for other in sorted(int(str(key)) for key in index.query(sketch)):
            if sketch.jaccard(sketches[other]) >= threshold:
                found.append((number, other))
        index.insert(str(number), sketch)
    return found


def _sketch(text: str) -> MinHash:
    plain = normalise(text)
    sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
    sketch.update_batch(
        [plain[i : i + _SHINGLE].encode() for i in range(max(1, len(plain) - _SHINGLE + 1))]
    )
    return sketch


def _look(item: T, problem: Callable[[T], str | None]) -> list[str | None]:
    """Why the item goes, or None, and the sketch of its prompt in hexadecimal."""
    if reason := problem(item):
        return [reason, None]
    return [None, _sketch(item.prompt).hashvalues.astype("<u8").tobytes().hex()]


def _unpack(sketch: str) -> MinHash:
    found = MinHash(num_perm=_PERMUTATIONS, seed=1)
    found.hashvalues = np.frombuffer(bytes.fromhex(sketch), dtype="<u8")
    return found


def _reject_if(
    items: Sequence[T], problem: Callable[[T], str | None], rejected: list[Rejected]
) -> list[T]:
    kept: list[T] = []
    for item in items:
        if reason := problem(item):
            rejected.append(Rejected(item.id, reason, item.to_json()))
        else:
            kept.append(item)
    return kept


def _without_duplicates(
    records: list[Record], sketches: list[MinHash], threshold: float, rejected: list[Rejected]
) -> tuple[list[Record], list[MinHash]]:
    """Drop later copies. Twins of one contrast group are alike on purpose and stay, unless they are
    the same prompt."""
    reasons: dict[int, str] = {}
    seen: dict[str, int] = {}
    for number, record in enumerate(records):
        first = seen.setdefault(normalise(record.prompt), number)
        if first != number:
            same = records[first].decision == record.decision
            what = "the same prompt as" if same else "the same prompt with another decision as"
            reasons[number] = f"{what} {records[first].id}"
    for later, earlier in near_sketches(sketches, threshold=threshold):
        if (
            later not in reasons
            and earlier not in reasons
            and not _twins(records[later], records[earlier])
        ):
            reasons[later] = f"nearly the same prompt as {records[earlier].id}"
    for number, reason in reasons.items():
        rejected.append(Rejected(records[number].id, reason, records[number].to_json()))
    kept = [number for number in range(len(records)) if number not in reasons]
    return [records[number] for number in kept], [sketches[number] for number in kept]


def _without_copies(
    pairs: list[Pair],
    records: list[Record],
    sketches: list[MinHash],
    threshold: float,
    rejected: list[Rejected],
) -> list[Pair]:
    """Drop pairs whose prompt is nearly a record's: their chosen sides train, and the record may be
    held out.

    Args:
        sketches: of the records' prompts, then of the pairs'.
    """
    copies = {
        later: earlier
        for later, earlier in near_sketches(sketches, threshold=threshold)
        if earlier < len(records)
    }

    def problem(pair: Pair) -> str | None:
        earlier = copies.get(len(records) + number[pair.id])
        return None if earlier is None else f"nearly the same prompt as {records[earlier].id}"

    number = {pair.id: place for place, pair in enumerate(pairs)}
    return _reject_if(pairs, problem, rejected)


def _twins(one: Record, other: Record) -> bool:
    group = {name for name in (one.contrast_of, other.contrast_of) if name}
    return bool(group & {one.id, other.id}) or (
        one.contrast_of is not None and one.contrast_of == other.contrast_of
    )


def _balance(records: list[Record], ratio: float, rejected: list[Rejected]) -> list[Record]:
    """No decision keeps more than `ratio` times the rarest one's records; lone records go first,
    then from the end."""
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
            rejected.append(Rejected(record.id, reason, record.to_json()))
    return [record for record in records if record.id not in dropped]
