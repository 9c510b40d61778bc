"""Rank the samples of one prompt: what can be verified counts first, then the judge, then what the
samples agree on, then quality."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from aegis.data.clean import normalise
from aegis.data.pairs.sample import Chances
from aegis.data.records import Record
from aegis.data.score.answer import KEY, chosen
from aegis.data.score.numbers import equations, numbers
from aegis.data.score.record import score_record
from aegis.protocol.checks import check
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import compose

RULES: tuple[str, ...] = ("verifiable", "judge", "self-verification", "quality")
# How far two samples have to lie apart for a rule to tell them apart.
GAPS = {"verifiable": 0.25, "judge": 0.2, "self-verification": 0.15, "quality": 0.1}
_WRONG_DECISION = 0.1


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt with its samples.

    Args:
        record: the first with this prompt: what the pair's other fields are taken from.
        decision: the right one.
        label: who says so: `record` (a record without thinking, or all samples), `judge`, `vote`.
        key: what the answer must come to, where a record says so.
        samples: records with thinking.
    """

    record: Record
    decision: Decision
    label: str
    key: object
    samples: tuple[Record, ...]


@dataclass(frozen=True)
class RankedSample:
    """A sample and its values by rule, each in [0, 1].

    Args:
        characters: of the whole response, private and public.
    """

    sample: Record
    values: dict[str, float]
    characters: int

    @property
    def right(self) -> bool:
        """Nothing that can be verified is wrong."""
        return self.values["verifiable"] >= 0.5

    def beats(self, other: RankedSample) -> str | None:
        """Return the first rule by which the two differ, where it is for this one; else None."""
        for rule in RULES:
            difference = self.values[rule] - other.values[rule]
            if abs(difference) >= GAPS[rule]:
                return rule if difference > 0 else None
        return None


def gather(records: Iterable[Record], judged: Chances | None = None) -> list[SampledPrompt]:
    """Group records by prompt, in the order of their first record.

    The label is the decision of the records without thinking, which are labels and no samples; or
    of all samples, where they agree; or the judge's; or what most samples say, of equals the
    severer.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[normalise(record.prompt) or record.prompt].append(record)
    return [_prompt(group, judged or {}) for group in groups.values()]


def rank(prompt: SampledPrompt, judged: Chances | None = None) -> list[RankedSample]:
    """Return the samples of a prompt with their values, the best first."""
    chances = (judged or {}).get(prompt.record.prompt, {})
    results = [_result(sample) for sample in prompt.samples]
    votes = Counter(filter(None, results))
    ranked = []
    for sample, result in zip(prompt.samples, results, strict=True):
        assert sample.thinking
        labelled = sample.decision is prompt.decision
        extra = {**sample.extra, **({} if prompt.key is None else {KEY: prompt.key})}
        score = score_record(replace(sample, extra=extra))
        agreement = votes[result] / votes.total() if result and len(votes) > 1 else 1.0
        checks = check(sample.prompt, sample.thinking, decision=sample.decision)
        correct = score.parts["correctness"].value
        values = (
            correct if labelled else min(correct, _WRONG_DECISION),
            chances.get(sample.decision, 0.0),
            (checks.score + float(bool(checks.stance))) / 4 + agreement / 2,
            score.overall,
        )
        given = dict(zip(RULES, values, strict=True))
        ranked.append(RankedSample(sample, given, len(compose(sample.thinking))))
    return sorted(
        ranked, key=lambda each: (tuple(-v for v in each.values.values()), each.sample.id)
    )


def _prompt(group: Sequence[Record], judged: Chances) -> SampledPrompt:
    first = group[0]
    samples = tuple(record for record in group if record.thinking)
    given = {record.decision for record in group if record.thinking is None}
    given = given or {record.decision for record in samples}
    keys = [record.extra[KEY] for record in group if KEY in record.extra]
    chances = judged.get(first.prompt)
    if len(given) == 1:
        decision, label = given.pop(), "record"
    elif chances:
        decision, label = max(chances, key=lambda each: (chances[each], each)), "judge"
    else:
        votes = Counter(record.decision for record in samples)
        decision, label = max(votes, key=lambda each: (votes[each], each)), "vote"
    return SampledPrompt(first, decision, label, keys[0] if keys else None, samples)


def _result(sample: Record) -> str | None:
    """Return what an allowed answer comes to, a choice or a last number, to be voted on."""
    if sample.decision is not Decision.ALLOW or sample.thinking is None:
        return None
    public = sample.thinking.public
    if key := chosen(public):
        return unicodedata.normalize("NFKC", key)
    if sums := equations(public):
        return f"{sums[-1].result:g}"
    given = numbers(public) - numbers(sample.prompt)
    return f"{given.pop():g}" if len(given) == 1 else None
