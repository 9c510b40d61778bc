"""Sums, units and dates are told right from wrong, and nothing of a text is ever executed."""

from __future__ import annotations

import datetime
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.data.score.numbers import (
    asked_date,
    asked_quantity,
    asked_sum,
    dates,
    equations,
    evaluate,
    numbers,
    states,
    wrong_conversions,
)

RIGHT = (
    "180×6=1080円です。",
    "First 7 * 18 = 126, then 126 + 9 = 135.",
    "６０ － １５ ＝ ４５",
    "10,000 ÷ 4 = 2,500",
    "3.5×1000=3500ミリリットル",
    "20% * 50 = 10",
    "(2 + 3) * 4 = 20",
    "12 + 5 = 17 = 20 - 3",
    "2 / 3 = 0.67",
    "100-150 = -50",
    "310 / 24 is about 13",
)
WRONG = ("180×6=1800円です。", "7 * 18 = 136", "1,000 + 1 = 1,002", "2 / 3 = 0.6", "9 × 9 ＝ 82")
NO_SUM = ("x + 3 = 10", "2x + 4 = 28", "2026-11-30 = today", "a = 3", "v1.2 = 3", "5B + 4 = 19", "")


@pytest.mark.parametrize("text", RIGHT)
def test_right_sums_hold(text: str) -> None:
    assert equations(text)
    assert all(equation.holds for equation in equations(text))


@pytest.mark.parametrize("text", WRONG)
def test_wrong_sums_do_not_hold(text: str) -> None:
    assert [equation.holds for equation in equations(text)] == [False]


@pytest.mark.parametrize("text", NO_SUM)
def test_what_is_no_sum_is_passed_over(text: str) -> None:
    assert equations(text) == []


@given(st.integers(0, 9999), st.integers(0, 9999), st.integers(-3, 3), st.sampled_from("+*-×−"))
def test_a_sum_holds_if_and_only_if_it_is_right(a: int, b: int, off: int, sign: str) -> None:
    value = {"+": a + b, "*": a * b, "×": a * b}.get(sign, a - b)
    (equation,) = equations(f"That makes {a} {sign} {b} = {value + off}.")
    assert equation.holds == (off == 0 or value + off == -value)


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "9**9**9", "1//0", "1/0", "(" * 300, "1" * 500, "a.b", "1 if 2 else 3"],
)
def test_only_sums_are_evaluated(text: str) -> None:
    assert evaluate(text) in (None, 10.0, 123.0)  # letters are units: passed over


def test_numbers_with_myriads_and_words_are_read() -> None:
    assert numbers("11万250円を12億、それに seven 1,830") == {110_250, 1.2e9, 7, 1830}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("3 hours are 10,800 seconds", 0),
        ("3 hours are 1,800 seconds", 1),
        ("2メートルは200センチ", 0),
        ("2メートルは20センチ", 1),
        ("5 kg = 3 metres", 0),
    ],
)
def test_conversions(text: str, wrong: int) -> None:
    assert len(wrong_conversions(text)) == wrong


@pytest.mark.parametrize(
    ("prompt", "number", "unit"),
    [
        ("Convert 3 hours and 20 minutes into seconds.", 12_000, "seconds"),
        ("How many metres are 2.5 miles?", 4023.36, "metres"),
        ("3.5リットルは何ミリリットルですか。", 3500, "ミリリットル"),
    ],
)
def test_a_prompt_determines_its_conversion(prompt: str, number: float, unit: str) -> None:
    asked = asked_quantity(prompt)
    assert asked is not None
    assert asked[0] == pytest.approx(number)
    assert states(f"It is {number:g} {unit}.", *asked)
    assert not states(f"It is {number * 1.1:g} {unit}.", *asked)


def test_a_number_beside_another_unit_is_not_the_answer() -> None:
    assert not states("It is 12,000 metres.", 12_000, "seconds")


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("2026-02-30", False),
        ("2026年4月40日", False),
        ("31 April 2026", False),
        ("2024年3月1日(金)", True),
        ("2024年3月1日(月)", False),
        ("Friday, 1 March 2024", True),
        ("Monday, March 4th, 2024", True),
        ("Sunday, March 4, 2024", False),
        ("29 February", True),
    ],
)
def test_dates_that_no_calendar_has_are_told(text: str, valid: bool) -> None:
    assert {each.date is not None for each in dates(text)} == {valid}


@pytest.mark.parametrize(
    ("prompt", "date"),
    [
        ("What date is 30 days after 2026-01-15?", datetime.date(2026, 2, 14)),
        ("2026年2月20日から数えて14日後は?", datetime.date(2026, 3, 6)),
        ("2026年4月10日の30日前はいつですか。", datetime.date(2026, 3, 11)),
        ("What is 9 days after the party?", None),
        ("99999999 days after 2026-01-15?", None),
    ],
)
def test_a_prompt_determines_its_date(prompt: str, date: datetime.date | None) -> None:
    assert asked_date(prompt) == date


def test_a_prompt_determines_its_sum() -> None:
    assert asked_sum("What is 17 × 23?") == 391
    assert asked_sum("12×5を計算してください。") == 60
    assert asked_sum("Tell me about 24/7 support") is None


@pytest.mark.parametrize("piece", ["((", "1 + 2 = ", "))", "1,"])
def test_time_does_not_grow_faster_than_the_text(piece: str) -> None:
    def seconds(characters: int) -> float:
        text = piece * (characters // len(piece))
        started = time.process_time()
        equations(text)
        return time.process_time() - started

    short = min(seconds(2_000) for _ in range(3))
    assert min(seconds(16_000) for _ in range(2)) < 8 * short * 2.5 + 0.02
