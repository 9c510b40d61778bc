from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from aegis.config import QualitySettings
from aegis.data.clean import SimilarTexts, clean, near, problem_of, repetition, steps
from aegis.data.records import Record, parse_pair, parse_record
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import SECTIONS, Thinking
from tests.data.near import near_duplicates
from tests.data.test_records import SIDE


def record(prompt: str, decision: str = "ALLOW", **more: str) -> Record:
    return parse_record(
        {"id": more.pop("id", prompt), "prompt": prompt, "decision": decision, **more}, where="t:1"
    )


PROMPTS = [
    "How do trains brake?",
    "Name three rivers.",
    "明日の天気は？",
    "Write a poem about rust.",
    "何時に閉まりますか",
]


def test_what_goes_has_a_reason_and_what_stays_is_unchanged() -> None:
    good = [record(prompt) for prompt in PROMPTS]
    copies = [
        record("how do trains  BRAKE", id="copy"),
        record("Name three rivers", "REFUSE", id="clash"),
    ]
    stuck = record("again and again " * 30, id="stuck")
    result = clean([*good, *copies, stuck], [], QualitySettings())
    assert result.records == good
    reasons = {item.where: item.reason for item in result.rejected}
    assert reasons["copy"] == "the same prompt as How do trains brake?"
    assert reasons["clash"].startswith("the same prompt with another decision as")
    assert reasons["stuck"] == "prompt repeats itself"


def test_a_record_and_a_pair_of_one_id_are_both_told() -> None:
    pair = parse_pair(
        {"id": "a", "prompt": "?", "chosen": SIDE, "rejected": {**SIDE, "final": "No."}},
        where="t:2",
    )
    result = clean([record("Why do trains brake?", id="a")], [pair], QualitySettings())
    assert [row["id"] for row in result.trace()] == ["a", "a"]
    assert (result.log()[0].into, result.log()[-1].out) == (2, 1)


def test_near_duplicates_go_but_contrast_twins_stay() -> None:
    long = "Please explain in simple words how I can close the account of {} at my bank this week"
    first, near = record(long.format("mine"), id="a"), record(long.format("mine,"), id="b")
    alike = record(long.format("mine?!") + "?", id="c")
    twin = record(long.format("hers"), "REFUSE", id="d", contrast_of="a")
    result = clean([first, near, alike, twin], [], QualitySettings(near_duplicate=0.6))
    assert [item.id for item in result.records] == ["a", "d"]
    assert near_duplicates([first.prompt, twin.prompt], threshold=0.6)


def test_balance_takes_from_the_large_and_keeps_twins() -> None:
    rows = [
        record(f"{word} question about the sea", id=word)
        for word in ("first", "second", "third", "fourth", "fifth")
    ]
    rows[4] = replace(rows[4], contrast_of="r")
    rows += [record(f"unlike {d}", d, id=d[0].lower()) for d in ("ESCALATION", "DENY", "REFUSE")]
    rows = [replace(r, prompt=f"{r.id * 9} {i * 7919}") for i, r in enumerate(rows)]
    kept = clean(rows, [], QualitySettings(balance_ratio=2, max_repetition=1, min_score=0)).records
    assert [item.id for item in kept if item.decision == Decision.ALLOW] == ["first", "fifth"]


def thought(text: str) -> Record:
    thinking = Thinking.from_bodies(dict.fromkeys(SECTIONS, text), text, where="t")
    made = {"language": "ja", "domain": "disaster", "thinking": thinking}
    return Record(id="t", prompt="地震のときは？", decision=Decision.ALLOW, **made)


def test_quality_asks_for_the_prompts_language() -> None:
    bad = thought("All in English.")
    assert problem_of(bad, QualitySettings()) == "task is not Japanese"


def test_repetition_is_between_prose_and_a_stuck_generator() -> None:
    assert repetition("The quick brown fox jumps over the lazy dog, and then it sleeps.") < 0.1
    assert repetition("ねこねこねこ" * 20) > 0.9
    assert repetition("はいはいはいはいはいはい") > 0.5
    assert repetition("住民票は市役所で取れます。") < 0.1


def test_sections_that_say_the_same_are_no_thinking() -> None:
    same = thought("安全な場所に移ってください。")
    assert "only repeats the" in str(problem_of(same, QualitySettings()))


def shingled(text: str) -> set[str]:
    return {text[start : start + 4] for start in range(len(text) - 3)}


@pytest.mark.parametrize(
    ("threshold", "letters"), [(0.8, "abcdefghij "), (0.6, "あいうえおかきくけこ")]
)
def test_pairs_that_are_alike_are_found(threshold: float, letters: str) -> None:
    random_ = random.Random(3)
    index, alike, found, false = SimilarTexts(threshold), 0, 0, 0
    for number in range(800):
        text = "".join(random_.choices(letters, k=random_.randint(40, 160))).strip()
        text = " ".join(text.split())
        index.add(number, text)
        changed = list(text)
        for _ in range(random_.randint(1, len(text) // 30 + 1)):
            changed[random_.randrange(1, len(text) - 1)] = "z"
        other = "".join(changed)
        one, two = shingled(text), shingled(other)
        if len(one & two) / len(one | two) >= threshold:
            alike += 1
            found += number in index.alike(other)
        else:
            false += number in index.alike(other)
    assert alike > 200
    assert found / alike >= 0.95
    assert false == 0


@pytest.mark.parametrize("copies", [False, True])
def test_no_cost_a_record_grows_with_their_number(
    monkeypatch: pytest.MonkeyPatch, copies: bool
) -> None:
    counts: Counter[str] = Counter()

    def count(module: object, name: str) -> None:
        original = getattr(module, name)

        def counted(*arguments):
            counts[name] += 1
            return original(*arguments)

        monkeypatch.setattr(module, name, counted)

    for name in ("_similarity", "_shingles"):
        count(near, name)
    count(steps, "_quality")
    words = random.Random(5)

    def calls(number: int) -> dict[str, float]:
        counts.clear()
        rows = []
        for place in range(number):
            text = "".join(words.choices("abcdefghijklmnopqrstuvwxyz", k=60))
            text = f"Please explain how I close the account at my bank {place}" if copies else text
            rows.append(record(text, id=f"{number}-{place}"))
        clean(rows, [], QualitySettings(near_duplicate=0.6))
        return {name: value / number for name, value in counts.items()}

    few, many = calls(100), calls(800)
    assert few.keys() == many.keys()
    assert all(many[name] <= few[name] * 1.1 for name in few)
