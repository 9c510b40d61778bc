from __future__ import annotations

from dataclasses import replace

from aegis.config import QualitySettings
from aegis.data.clean import clean, near_duplicates, quality_problem, repetition
from aegis.data.generate import generate
from aegis.data.records import Record, parse_record
from aegis.data.topics import Topic
from aegis.protocol.decisions import Decision


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
    kept = clean(rows, [], QualitySettings(balance_ratio=2, max_repetition=1)).records
    assert [item.id for item in kept if item.decision == Decision.ALLOW] == ["first", "fifth"]


def test_quality_asks_for_the_prompts_language() -> None:
    topic = Topic("t", "地震のときは？", "ja", "disaster", Decision.ALLOW)
    bad, _ = generate([topic], lambda prompts: ["All in English."] * len(prompts))
    assert quality_problem(bad[0], QualitySettings()) == "task is not Japanese"


def test_repetition_is_between_prose_and_a_stuck_generator() -> None:
    assert repetition("The quick brown fox jumps over the lazy dog, and then it sleeps.") < 0.1
    assert repetition("ねこねこねこ" * 20) > 0.9
    assert repetition("はいはいはいはいはいはい") > 0.5
    assert repetition("住民票は市役所で取れます。") < 0.1


def test_sections_that_say_the_same_are_no_thinking() -> None:
    topic = Topic("t", "地震のときは？", "ja", "disaster", Decision.ALLOW)
    found, _ = generate([topic], lambda prompts: ["安全な場所に移ってください。"] * len(prompts))
    assert "only repeats the" in str(quality_problem(found[0], QualitySettings()))
