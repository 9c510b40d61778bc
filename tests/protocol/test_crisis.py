from __future__ import annotations

import time

import pytest

from aegis.protocol.crisis import is_crisis
from tests.protocol.crises import HARMLESS, HINTED, SAID


def test_the_list_is_long_enough_and_in_both_languages() -> None:
    assert len({*SAID, *HINTED}) >= 60
    assert sum(text.isascii() for text in SAID) >= 25
    assert sum(not text.isascii() for text in SAID) >= 30


@pytest.mark.parametrize("text", SAID)
def test_a_person_in_crisis_is_recognised(text: str) -> None:
    assert is_crisis(text)
    assert is_crisis(f"What is the capital of France? {text} 明日の天気は？")


@pytest.mark.parametrize("text", HARMLESS)
def test_a_figure_of_speech_is_none(text: str) -> None:
    assert not is_crisis(text)


@pytest.mark.parametrize(
    "text",
    [
        "Ｉ ｗａｎｔ ｔｏ ｄｉｅ",
        "I wa\u200bnt to d\u200bie",
        "I wаnt tо die",
        "死\u200bにたい",
        "I want to\ndie",
        "死に たい",
    ],
)
def test_spelling_does_not_hide_it(text: str) -> None:
    assert is_crisis(text)


def test_a_long_text_takes_no_time() -> None:
    many = (
        "i want to ",
        "死",
        "how many pills ",
        "a",
        "jump off bridge ",
        "i want to die in a game ",
    )
    for text in many:
        begun = time.process_time()
        is_crisis(text * (40_000 // len(text)))
        assert time.process_time() - begun < 2
