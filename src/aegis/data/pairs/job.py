"""From samples to pairs: rank, match by length, balance, report."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis.data.folder import StepOutcome, writing_data
from aegis.data.pairs.lengths import Match, balanced, length_bias, matched, widest
from aegis.data.pairs.rank import RULES, RankedSample, SampledPrompt, gather, rank
from aegis.data.pairs.sample import Chances
from aegis.data.records import Item, Pair, Record, Rejected, Side
from aegis.protocol.decisions import NAMES
from aegis.storage.files import fingerprint, to_json

VERSION = 1


@dataclass(frozen=True)
class Pairing:
    """What is asked of the pairs.

    Args:
        match_lengths: choose, swap and drop so that the longer side is chosen as often as not.
        tolerance: lengths are alike whose ratio is at most 1 + tolerance.
        balance: at most so many times as many pairs of a chosen decision as of the rarest.
    """

    match_lengths: bool = True
    tolerance: float = 0.25
    balance: float = 1.5


@dataclass(frozen=True)
class MadePairs:
    """The pairs, all that came in, what stays as it is, what went and why, and the report."""

    seen: list[Item]
    pairs: list[Pair]
    others: list[Item]
    rejected: list[Rejected]
    report: dict[str, Any]


def make_pairs(
    items: Iterable[Item | Rejected], pairing: Pairing, chances: Chances | None = None
) -> MadePairs:
    """Make at most one pair of each prompt that has samples of which one is better.

    The chosen side does what the right decision asks for, and nothing in it that can be verified is
    wrong. Samples in no pair are rejected, with the reason; what is no sample stays as it is.
    """
    records: list[Record] = []
    others: list[Item] = []
    rejected: list[Rejected] = []
    seen: list[Item] = []
    for item in items:
        if isinstance(item, Rejected):
            rejected.append(item)
            continue
        seen.append(item)
        if isinstance(item, Record):
            records.append(item)
        if not isinstance(item, Record) or item.thinking is None:
            others.append(item)
    prompts = gather(records, chances)
    ranked = [rank(prompt, chances) for prompt in prompts]
    right = [
        [each for each in samples if each.right and each.sample.decision is prompt.decision]
        for prompt, samples in zip(prompts, ranked, strict=True)
    ]
    choices = [_matches(*each) for each in zip(range(len(prompts)), right, ranked, strict=True)]
    widest_of_each = widest(choices)
    kept, unlike = widest_of_each, []
    if pairing.match_lengths:
        kept, unlike = matched(choices, tolerance=pairing.tolerance)
    kept, surplus = balanced(kept, pairing.balance)
    reasons = {
        match.prompt: "of unlike length: the longer side would win too often" for match in unlike
    }
    reasons |= {
        match.prompt: f"{match.chosen.sample.decision.name} is over {pairing.balance:g} times "
        "the rarest chosen decision"
        for match in surplus
    }
    made = {match.prompt: match for match in kept}
    unused: list[Rejected] = []
    for number, prompt in enumerate(prompts):
        reason = reasons.get(number) or _no_pair(prompt, right[number], choices[number])
        unused += _unused(prompt.samples, made.get(number), reason)
    report = _report(prompts, kept, widest_of_each, unused)
    pairs = [_pair(prompts[match.prompt], match) for match in kept]
    return MadePairs(seen, pairs, others, [*rejected, *unused], report)


def write_pairs(target: Path, made: MadePairs, pairing: Pairing, *, inputs: Sequence[Path]) -> None:
    """Write a data folder with the pairs and `pairs.json`, the report, beside them."""
    with writing_data(
        target, fingerprint("pairs", VERSION, str(pairing), *map(str, inputs))
    ) as writer:
        for item in made.seen:
            writer.saw(item)
        for item in (*made.pairs, *made.others, *made.rejected):
            writer.add(item)
        reasons = dict(Counter(item.reason for item in made.rejected))
        unread = len(made.rejected) - sum(made.report["not_paired"].values())
        out = len(made.pairs) + len(made.others)  # each pair is made of two samples
        writer.log(StepOutcome("pairs", VERSION, len(made.seen) + unread, out, reasons))
        (writer.folder / "pairs.json").write_text(to_json(made.report), encoding="utf-8")


def _matches(
    number: int, right: Sequence[RankedSample], ranked: Sequence[RankedSample]
) -> list[Match]:
    """Return every way in which a sample that is right beats another."""
    sides = [(better, worse) for better in right for worse in ranked if worse is not better]
    rules = [(better, worse, better.beats(worse)) for better, worse in sides]
    return [Match(number, better, worse, rule) for better, worse, rule in rules if rule]


def _no_pair(prompt: SampledPrompt, right: Sequence[RankedSample], matches: Sequence[Match]) -> str:
    if len(prompt.samples) == 1:
        return "the only sample of its prompt"
    if matches:
        return "another sample of its prompt is in the pair"
    if not right:
        return "no sample of its prompt is right"
    return "the samples of its prompt are as good as one another"


def _unused(samples: Sequence[Record], match: Match | None, reason: str) -> list[Rejected]:
    used = {id(match.chosen.sample), id(match.rejected.sample)} if match else set()
    return [Rejected.item(sample, reason) for sample in samples if id(sample) not in used]


def _pair(prompt: SampledPrompt, match: Match) -> Pair:
    record, sides = prompt.record, (match.chosen.sample, match.rejected.sample)
    chosen, rejected = (
        Side(sample.decision, sample.thinking) for sample in sides if sample.thinking
    )
    digest = hashlib.sha256(record.prompt.encode()).hexdigest()[:16]
    made_by = {"rule": match.rule, "gap": round(match.gap, 4), "label": prompt.label}
    return Pair(
        id=f"pair-{digest}",
        prompt=record.prompt,
        language=record.language,
        domain=record.domain,
        chosen=chosen,
        rejected=rejected,
        source=record.source,
        provenance=sides[0].provenance,
        extra={**made_by, "chosen_id": sides[0].id, "rejected_id": sides[1].id},
    )


def _report(
    prompts: Sequence[SampledPrompt],
    kept: Sequence[Match],
    before: Sequence[Match],
    unused: Sequence[Rejected],
) -> dict[str, Any]:
    decisions = Counter(match.chosen.sample.decision.name for match in kept)
    rules = Counter(match.rule for match in kept)
    return {
        "samples": sum(len(prompt.samples) for prompt in prompts),
        "prompts": len(prompts),
        "pairs": len(kept),
        "labels": dict(sorted(Counter(prompt.label for prompt in prompts).items())),
        "chosen_decisions": {name: decisions[name] for name in NAMES},
        "rules": {rule: rules[rule] for rule in RULES},
        "length_before": length_bias(before),
        "length_after": length_bias(kept),
        "not_paired": dict(Counter(item.reason for item in unused).most_common()),
    }
