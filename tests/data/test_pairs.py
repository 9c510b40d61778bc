"""The better of several samples is chosen by the strongest rule that tells them apart, lengths
decide nothing, and what is in no pair is kept with its reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aegis.data.formats import read_items
from aegis.data.pairs.job import MadePairs, Pairing, make_pairs, write_pairs
from aegis.data.pairs.lengths import Match, balanced, length_bias, matched, widest
from aegis.data.pairs.rank import RULES, RankedSample, gather, rank
from aegis.data.pairs.sample import Draw, sample
from aegis.data.records import (
    Item,
    Pair,
    Provenance,
    Record,
    Rejected,
    parse_pair,
    parse_record,
)
from aegis.data.seed import seed_pairs
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import Thinking
from aegis.storage.journal import Journal

PROMPT = "A shirt costs 60 dollars and is 25 percent off. What is the new price?"
BODIES = {
    "task": "Find the price of the shirt after 25 percent off.",
    "safety": "Nobody is at risk.",
    "policy": "A harmless sum, ALLOW.",
    "final": "Take a quarter of 60 dollars off and state the price.",
}
NO = "I can't discuss prices of shirts; please ask the shop, who can tell you the new price."


def response(final: str, name: str = "a", **fields: Any) -> Record:
    raw = {"id": name, "prompt": PROMPT, "decision": "ALLOW", "thinking": BODIES, "final": final}
    return parse_record(raw | fields, where=name)


def label(**fields: Any) -> Record:
    return parse_record({"id": "l", "prompt": PROMPT, "decision": "ALLOW", **fields}, where="l")


def made(*items: Item | Rejected, **pairing: Any) -> MadePairs:
    return make_pairs(items, Pairing(**{"match_lengths": False, **pairing}))


RIGHT = "The new price is 45 dollars, because a quarter of 60 is 15 and 60 - 15 = 45."
WRONG_SUM = "The new price is 44 dollars, because a quarter of 60 is 15 and 60 - 15 = 44."
OTHER = "The new price is 48 dollars after the discount on the shirt."
DENY = {"decision": "DENY", "thinking": {**BODIES, "policy": "Not permitted: DENY."}}


@pytest.mark.parametrize(
    ("better", "worse", "labels", "rule"),
    [
        (response(RIGHT), response(WRONG_SUM, "b"), [], "verifiable"),
        (response(RIGHT), response(OTHER, "b"), [label(answer="45 dollars")], "verifiable"),
        (response(RIGHT), response(NO, "b", **DENY), [label()], "verifiable"),
        (response(NO, **DENY), response(RIGHT, "b"), [label(decision="DENY")], "verifiable"),
        (response(RIGHT), response("It is 45 dollars [insert reason]", "b"), [], "quality"),
    ],
)
def test_the_strongest_rule_that_tells_samples_apart_decides(
    better: Record, worse: Record, labels: list[Record], rule: str
) -> None:
    for order in ([better, worse], [worse, better]):
        (pair,) = made(*order, *labels).pairs
        assert (pair.extra["chosen_id"], pair.extra["rejected_id"]) == (better.id, worse.id)
        assert pair.extra["rule"] == rule
        assert pair.chosen.decision is better.decision
        assert parse_pair(pair.to_json(), where="p") == pair


def test_what_most_samples_come_to_is_chosen() -> None:
    third = "The new price is 45 dollars after the discount on the shirt."
    samples = [response(RIGHT), response(third, "b"), response(OTHER, "c")]
    (pair,) = made(*samples).pairs
    assert pair.extra["rejected_id"] == "c"
    assert pair.extra["rule"] in ("self-verification", "quality")
    values = {each.sample.id: each.values for each in rank(gather(samples)[0])}
    assert values["a"]["self-verification"] > values["c"]["self-verification"]


def test_the_judge_decides_where_samples_disagree_on_the_decision() -> None:
    samples = [response(RIGHT), response(NO, "b", **DENY)]
    chances = {PROMPT: {Decision.ALLOW: 0.1, Decision.DENY: 0.9}}
    assert gather(samples, chances)[0].label == "judge"
    (pair,) = make_pairs(samples, Pairing(match_lengths=False), chances).pairs
    assert pair.chosen.decision is Decision.DENY
    (vote,) = gather(samples)
    assert (vote.label, vote.decision) == ("vote", Decision.DENY)  # of equals the severer


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([response(RIGHT)], "the only sample of its prompt"),
        ([response(WRONG_SUM), response(WRONG_SUM, "b")], "no sample of its prompt is right"),
        ([response(RIGHT), response(RIGHT, "b")], "as good as one another"),
        ([response(RIGHT), response(WRONG_SUM, "b"), response(WRONG_SUM, "c")], "another sample"),
    ],
)
def test_what_is_in_no_pair_is_kept_with_its_reason(items: list[Record], reason: str) -> None:
    result = made(*items)
    assert {reason in each.reason for each in result.rejected} == {True}
    assert 2 * len(result.pairs) + len(result.rejected) == len(items)


def match(number: int, log_ratio: float, decision: Decision = Decision.ALLOW) -> Match:
    """Return a match whose chosen side has e^log_ratio times the characters of the other."""
    values = dict.fromkeys(RULES, 1.0)
    record = replace(response(RIGHT, f"r{number}"), decision=decision)
    sizes = (round(1000 * 2.718281828**log_ratio), 1000)
    chosen, rejected = (RankedSample(record, values, size) for size in sizes)
    return Match(number, chosen, replace(rejected, values=dict.fromkeys(RULES, 0.0)), "quality")


def test_length_bias_is_told_and_gone_after_matching() -> None:
    choices = [[match(number, 0.4 if number % 4 else -0.2)] for number in range(80)]
    before = length_bias(widest(choices))
    assert before["longer_wins"] == 0.75
    assert before["interval"][0] > 0.5
    assert before["correlation"] > 0.3
    kept, gone = matched(choices, tolerance=0.25)
    after = length_bias(kept)
    assert after["longer_wins"] == 0.5
    assert abs(after["correlation"]) < abs(before["correlation"])
    assert len(kept) + len(gone) == 80
    assert length_bias([])["longer_wins"] is None


def test_a_match_of_like_length_is_taken_before_anything_goes() -> None:
    choices = [[match(n, 0.9), match(n, 0.1), match(n, -0.1)] for n in range(10)]
    kept, gone = matched(choices, tolerance=0.25)
    assert (len(kept), gone) == (10, [])
    assert all(abs(each.log_ratio) < 0.11 for each in kept)
    assert length_bias(kept)["longer_wins"] == 0.5


def test_the_chosen_decisions_are_balanced() -> None:
    decisions = [Decision.ALLOW] * 30 + [Decision.DENY] * 10 + [Decision.REFUSE] * 12
    matches = [match(n, 0.1 * (-1) ** n, each) for n, each in enumerate(decisions)]
    kept, gone = balanced(matches, 1.5)
    counts = Counter(each.chosen.sample.decision for each in kept)
    assert counts == {Decision.ALLOW: 15, Decision.DENY: 10, Decision.REFUSE: 12}
    assert length_bias(kept)["longer_wins"] == pytest.approx(0.5, abs=0.05)
    assert len(gone) == 15
    assert balanced([], 1.5) == ([], [])


def split_pairs() -> list[Item | Rejected]:
    """Return both sides of the shipped pairs as samples, the right decisions as labels."""
    items: list[Item | Rejected] = []
    for pair in seed_pairs():
        decision = pair.chosen.decision
        first = Record(f"{pair.id}-label", pair.prompt, decision, pair.language, pair.domain)
        items.append(first)
        for name, side in (("good", pair.chosen), ("bad", pair.rejected)):
            shown = {"decision": side.decision, "thinking": side.thinking}
            items.append(replace(first, id=f"{pair.id}-{name}", **shown))
    return items


def test_the_side_that_people_chose_is_chosen(tmp_path: Path) -> None:
    items = split_pairs()
    result = make_pairs(items, Pairing())
    write_pairs(tmp_path / "out", result, Pairing(), inputs=[])
    out = list(read_items([tmp_path / "out"]))
    pairs = [each for each in out if isinstance(each, Pair)]
    assert len(pairs) > 150
    right = [pair.extra["chosen_id"].endswith("good") for pair in pairs]
    assert sum(right) / len(right) > 0.95
    counts = result.report["chosen_decisions"].values()
    assert max(counts) <= 1.5 * min(counts)
    before, after = result.report["length_before"], result.report["length_after"]
    assert abs(after["longer_wins"] - 0.5) <= min(0.05, abs(before["longer_wins"] - 0.5))
    lines = (tmp_path / "out/rejected.jsonl").read_text(encoding="utf-8").splitlines()
    rejected = [json.loads(line) for line in lines]
    assert 2 * len(pairs) + len(rejected) + len(result.others) == len(items)
    step = json.loads((tmp_path / "out/log.jsonl").read_text(encoding="utf-8"))
    assert step["in"] == len(items) == step["out"] + len(pairs) + sum(step["reasons"].values())
    assert all(row["reason"] for row in rejected)


class Parrot:
    """A model that answers 45 or 44 by the seed, and judges one prompt otherwise than its label."""

    name = "parrot"

    def __init__(self) -> None:
        self.drawn: list[Draw] = []

    def chances(self, prompts: Sequence[str]) -> list[dict[Decision, float]]:
        return [
            {Decision.ALLOW: 0.2, Decision.DENY: 0.8}
            if "shirt" in prompt
            else {Decision.ALLOW: 1.0}
            for prompt in prompts
        ]

    def draw(self, draws: Sequence[Draw]) -> list[Thinking | None]:
        self.drawn += draws
        texts = [RIGHT if draw.seed % 2 == 0 else None for draw in draws]
        bodies = [{**BODIES, "policy": f"So {draw.decision.name}."} for draw in draws]
        return [
            Thinking.from_bodies(body, text, where="x") if text else None
            for body, text in zip(bodies, texts, strict=True)
        ]


def test_samples_are_drawn_once_whatever_is_interrupted(tmp_path: Path) -> None:
    records = [label(), replace(label(), id="m", prompt="What is 4 plus 5?")]
    whole, model = Parrot(), Parrot()
    expected = sample(records, whole, count=4, seed=10)
    with pytest.raises(KeyboardInterrupt):
        sample(
            records,
            model,
            count=4,
            seed=10,
            remember=Journal(tmp_path / "j"),
            on_prompt=lambda: (_ for _ in ()).throw(KeyboardInterrupt),
        )
    assert sample(records, model, count=4, seed=10, remember=Journal(tmp_path / "j")) == expected
    assert model.drawn == whole.drawn
    drawn, chances = expected
    assert {each.decision for each in drawn} == {Decision.ALLOW}  # the odd ones came out as None
    assert {draw.decision for draw in whole.drawn} == {Decision.ALLOW, Decision.DENY}
    assert chances[PROMPT][Decision.DENY] == 0.8
    assert all(each.provenance and each.provenance.model == "parrot" for each in drawn)
    assert len({each.id for each in drawn}) == len(drawn) == 4


def test_the_label_decides_what_is_drawn_and_the_prompts_licence_stays(tmp_path: Path) -> None:
    origin = Provenance(url="https://a.jp/1", licence="CC-BY-4.0", backend="web", cost=1.0)
    wrong = response(NO, "b", **DENY)
    for order in ([label(), wrong], [wrong, label()]):
        model = Parrot()
        drawn, _ = sample(
            [replace(each, provenance=origin, prompt="What is 4 plus 5?") for each in order],
            model,
            count=2,
            seed=10,
        )
        assert {draw.decision for draw in model.drawn} == {Decision.ALLOW}
        (made_of,) = {each.provenance for each in drawn}
        expected = Provenance(
            url=origin.url, licence=origin.licence, backend="local", model="parrot"
        )
        assert made_of == expected
