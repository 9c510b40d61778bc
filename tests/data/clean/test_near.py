from __future__ import annotations

import random

import numpy as np
import pytest

from aegis.data.clean import near
from aegis.data.clean.near import (
    HELD_OUT,
    PAIR,
    PLAIN,
    RECORD,
    Copy,
    Prompt,
    band_keys,
    find_copies,
)
from aegis.data.clean.whole import hash_text
from aegis.data.seed import seed_records
from aegis.protocol.decisions import Decision

LONG = "please explain in simple words how i can close the account of {} at my bank this week"


def copies(prompts: list[Prompt], threshold: float = 0.8) -> dict[int, Copy]:
    texts = [prompt.text for prompt in prompts]
    kinds = np.array([prompt.kind for prompt in prompts], np.uint8)
    exact = np.array([hash_text(text) for text in texts], np.uint64)
    return find_copies(kinds, exact, band_keys(texts, threshold), prompts.__getitem__, threshold)


def test_held_out_comes_first_then_records_pairs_and_plain_texts() -> None:
    prompts = [
        Prompt("plain", LONG.format("mine"), PLAIN),
        Prompt("pair", LONG.format("mine,"), PAIR),
        Prompt("record", LONG.format("mine."), RECORD, Decision.ALLOW),
        Prompt("other", "something else altogether", RECORD, Decision.ALLOW),
        Prompt("test:7", "something else altogether!", HELD_OUT),
        Prompt("another pair", "a prompt of its own that is asked twice", PAIR),
        Prompt("and again", "a prompt of its own that is asked twice", PAIR),
    ]
    found = copies(prompts)
    assert {prompts[number].id: copy.other for number, copy in found.items()} == {
        "plain": "record",
        "pair": "record",
        "other": "test:7",
    }
    assert found[3].reason == "nearly the same prompt as held-out test:7"


def test_twins_stay_unless_they_are_the_same_and_no_copy_hides_another() -> None:
    shared = {"kind": RECORD, "decision": Decision.ALLOW}
    prompts = [
        Prompt("a", LONG.format("mine"), **shared),
        Prompt("b", LONG.format("hers"), contrast_of="a", **shared),
        Prompt("c", LONG.format("hers"), contrast_of="a", kind=RECORD, decision=Decision.DENY),
        Prompt("d", LONG.format("mine too"), **shared),
    ]
    found = copies(prompts)
    assert {number: copy.other for number, copy in found.items()} == {2: "b", 3: "a"}
    assert found[2].reason == "the same prompt with another decision as b"


def edited(text: str, letters: str, random_: random.Random) -> str:
    """Return the text with a few letters replaced, so that about 0.8 to 0.95 of it is the same."""
    changed = list(text)
    for _ in range(random_.randint(1, max(1, len(text) // 45))):
        changed[random_.randrange(len(text))] = random_.choice(letters)
    return "".join(changed)


@pytest.mark.parametrize("language", ["ja", "en"])
def test_planted_edits_are_found_and_nothing_else(language: str) -> None:
    random_ = random.Random(11)
    own = [record.prompt for record in seed_records() if record.language == language]
    texts = [" ".join(random_.sample(own, 3)) for _ in range(400)]
    prompts = [Prompt(str(n), text, RECORD) for n, text in enumerate(texts)]
    letters = "あいうえおかきくけこ" if language == "ja" else "abcdefghij"
    prompts += [
        Prompt(f"copy {n}", edited(text, letters, random_), RECORD) for n, text in enumerate(texts)
    ]

    def shingles(text: str) -> set[str]:
        return {text[start : start + 4] for start in range(len(text) - 3)}

    def alike(n: int) -> float:
        one, two = shingles(prompts[n].text), shingles(prompts[n + 400].text)
        return len(one & two) / len(one | two)

    planted = {n + 400 for n in range(400) if alike(n) >= 0.8}
    found = copies(prompts)
    assert len(planted) > 200
    assert len(planted & found.keys()) >= 0.95 * len(planted)
    assert len(planted & found.keys()) >= 0.95 * len(found)
    assert all(int(found[n].other.removeprefix("copy ")) == n - 400 for n in planted & found.keys())


def test_only_candidates_are_read() -> None:
    random_ = random.Random(2)
    texts = ["".join(random_.choices("abcdefghijklmnop", k=60)) for _ in range(500)]
    prompts = [Prompt(str(n), text, RECORD) for n, text in enumerate(texts)]
    asked: list[int] = []

    def prompt(number: int) -> Prompt:
        asked.append(number)
        return prompts[number]

    kinds, exact = np.full(500, RECORD, np.uint8), np.arange(500, dtype=np.uint64)
    assert find_copies(kinds, exact, band_keys(texts, 0.8), prompt, 0.8) == {}
    assert len(set(asked)) < 50


def test_texts_of_one_template_are_compared_with_few_and_copies_still_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random_ = random.Random(4)
    varied = ["".join(random_.choices("abcdefghijklmnop", k=22)) for _ in range(1500)]
    texts = [LONG.format(name) for name in varied]
    texts += [text.replace("how i can", "how we can") for text in random_.sample(texts, 100)]
    compared: list[int] = []
    exactly = near._similarity

    def counting(one: set[str], other: set[str]) -> float:
        compared.append(1)
        return exactly(one, other)

    monkeypatch.setattr(near, "_similarity", counting)
    found = copies([Prompt(str(n), text, RECORD) for n, text in enumerate(texts)])
    assert len(compared) < 100 * len(texts)
    assert len(found) >= 95
    assert min(found) >= 1500
