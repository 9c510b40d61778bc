"""The steps that need all items at once, over arrays with a few numbers an item."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis.config import QualitySettings
from aegis.data.clean.decisions import disagreements
from aegis.data.clean.near import PAIR, PLAIN, RECORD, Prompt, find_copies
from aegis.data.clean.quality import texts_of
from aegis.data.clean.steps import prompt_of
from aegis.data.clean.texts import normalise
from aegis.data.records import Item, Pair, Record
from aegis.protocol.decisions import Decision
from aegis.protocol.language import LANGUAGES

FACTS = np.dtype(
    [
        ("kind", np.uint8),
        ("decision", np.int8),
        ("language", np.uint8),
        ("length", np.uint32),
        ("exact", np.uint64),
        ("id", np.uint64),
        ("contrast", np.uint64),
        ("end", np.uint64),
    ]
)
"""What is known of an item: its kind and decision (-1 without one), hashes of its prompt, id and
contrast group (0 without one), and where its line ends in its file."""
SET_STEPS = (("ids", 1), ("duplicates", 5), ("outliers", 1), ("decisions", 3), ("balance", 1))
"""Names and versions of the steps over all items, in their order."""
_ENOUGH_ITEMS, _TO_SIGMA, _LEAST_SPREAD = 50, 1.4826, 0.2


def facts_of(item: Item, prompt: Prompt, end: int = 0) -> tuple[int, ...]:
    """Return the row of `FACTS`."""
    return (
        prompt.kind,
        -1 if prompt.decision is None else int(prompt.decision),
        LANGUAGES.index(item.language),
        sum(map(len, texts_of(item).values())),
        hash_text(prompt.text),
        hash_text(item.id),
        hash_text(prompt.contrast_of) if prompt.contrast_of else 0,
        end,
    )


def prompt_for(item: Item) -> Prompt:
    """Return what is compared of the item."""
    kind = RECORD if isinstance(item, Record) else PAIR if isinstance(item, Pair) else PLAIN
    record = item if isinstance(item, Record) else None
    decision, contrast = (record.decision, record.contrast_of) if record else (None, None)
    return Prompt(item.id, normalise(prompt_of(item)), kind, decision, contrast)


def hash_text(text: str) -> int:
    """Return 64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") or 1


def outliers(facts: NDArray, alive: NDArray[np.bool_], limit: float) -> dict[int, float]:
    """Return how far lie the items that are over `limit` robust deviations off, by their numbers.

    Measured on the logarithm of the length of all texts, from the median of the kind and language,
    in median absolute deviations brought to the scale of a normal distribution's sigma.
    """
    found: dict[int, float] = {}
    for kind in (RECORD, PAIR, PLAIN):
        for language in range(len(LANGUAGES)):
            chosen = (facts["kind"] == kind) & (facts["language"] == language) & alive
            numbers = np.flatnonzero(chosen)
            if len(numbers) < _ENOUGH_ITEMS:
                continue
            lengths = np.log1p(facts["length"][numbers])
            centre = np.median(lengths)
            spread = _TO_SIGMA * np.median(np.abs(lengths - centre))
            z = (lengths - centre) / max(float(spread), _LEAST_SPREAD)
            far = np.abs(z) > limit
            found |= dict(zip(numbers[far].tolist(), z[far].tolist(), strict=True))
    return found


def surplus(facts: NDArray, alive: NDArray[np.bool_], ratio: float) -> NDArray[np.int64]:
    """Return lone records, from the end, of decisions with over `ratio` times the rarest's.

    Records of a contrast group stay together, and where a decision has no record none is rare.
    """
    records = alive & (facts["kind"] == RECORD)
    counts = np.bincount(facts["decision"][records].astype(int), minlength=len(Decision))
    if not len(counts) or not counts.all():
        return np.empty(0, np.int64)
    limit = int(counts.min() * ratio)
    linked = np.unique(facts["contrast"][records])
    lone = records & (facts["contrast"] == 0) & ~np.isin(facts["id"], linked)
    dropped = [
        np.flatnonzero(lone & (facts["decision"] == decision))[-(count - limit) :]
        for decision, count in enumerate(counts)
        if count > limit
    ]
    return np.sort(np.concatenate(dropped)) if dropped else np.empty(0, np.int64)


def decision_weights(facts: NDArray, alive: NDArray[np.bool_]) -> dict[str, float]:
    """Return by decision what makes each count the same: n / (decisions · its records)."""
    records = alive & (facts["kind"] == RECORD)
    counts = np.bincount(facts["decision"][records].astype(int), minlength=len(Decision))
    present = int((counts > 0).sum())
    return {
        decision.name: round(float(counts.sum() / (present * counts[decision])), 4)
        for decision in Decision
        if counts[decision]
    }


@dataclass(frozen=True)
class Aside:
    """An item that a step over all sets aside."""

    step: str
    number: int
    reason: str
    note: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return what `aegis data explain` tells."""
        return {"step": self.step, **self.note, "reason": self.reason}


@dataclass(frozen=True)
class Whole:
    """All items that the steps before have left.

    Args:
        facts: (n,) of `FACTS`.
        bands: the keys of `band_keys`, a band at a time.
        prompt: what is compared of an item, by its number.
    """

    facts: NDArray
    bands: Iterable[NDArray[np.uint64]]
    prompt: Callable[[int], Prompt]


def set_aside_copies(whole: Whole, threshold: float) -> list[Aside]:
    """Return duplicates, near and exact, and what is nearly a held-out prompt."""
    facts = whole.facts
    copies = find_copies(facts["kind"], facts["exact"], whole.bands, whole.prompt, threshold)
    return [
        Aside(
            "duplicates",
            number,
            copy.reason,
            {"twin": copy.other, "similarity": copy.similarity},
        )
        for number, copy in sorted(copies.items())
    ]


def set_aside_rest(
    whole: Whole,
    alive: NDArray[np.bool_],
    settings: QualitySettings,
    probabilities: NDArray[np.float32] | None = None,
) -> list[Aside]:
    """Return what outliers, the decision check and balance set aside; `alive` gets their marks.

    Args:
        alive: (n,) what the steps before left.
        probabilities: (n, 4) of a judge that has not seen the item; NaN where there are none.
    """
    found: list[Aside] = []

    def add(step: str, number: int, reason: str, **note: Any) -> None:
        alive[number] = False
        found.append(Aside(step, number, reason, note))

    for number, z in outliers(whole.facts, alive, settings.max_outlier).items():
        length = "long" if z > 0 else "short"
        add("outliers", number, f"outlier: far too {length} for its kind", z=round(z, 2))
    if probabilities is not None:
        numbers = np.flatnonzero(
            alive & (whole.facts["kind"] == RECORD) & np.isfinite(probabilities[:, 0])
        )
        labels = whole.facts["decision"][numbers].astype(int)
        suggested = disagreements(labels, probabilities[numbers])
        for place in np.flatnonzero(suggested >= 0).tolist():
            number, judged = int(numbers[place]), Decision(int(suggested[place]))
            given, row = Decision(int(labels[place])), probabilities[numbers[place]].tolist()
            reason = f"labelled {given.name}, judged {judged.name}: for a person"
            note = {"judged": judged.name, "probabilities": [round(p, 4) for p in row]}
            add("decisions", number, reason, **note)
    if settings.balance == "cap":
        ratio = settings.balance_ratio
        for number in surplus(whole.facts, alive, ratio).tolist():
            decision = Decision(int(whole.facts["decision"][number]))
            add("balance", number, f"{decision.name} is over {ratio:g} times the rarest decision")
    return found
