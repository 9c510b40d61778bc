"""What is found and masked on the hand-made strings, and on texts that nobody made by hand."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.data.personal import find_personal, mask_everywhere, mask_personal_data
from tests.data.personal.labelled import VARIANTS, labelled_strings
from tests.data.personal.scores import score

ALPHABET = (
    "0123456789０９〇一二三-－ー.:@＠ ()（）/\u200b市区町県様さん氏名生TKAaemi=年月日番号丁目口座"
)


def test_personal_data_is_masked() -> None:
    for text in (
        "Write to John.Doe@Example.com",
        "連絡先は taro＠example.jp です",
        "090-1234-5678",
        "call (03) 1234-5678",
    ):
        masked, found = mask_personal_data(text)
        assert found == 1, text
        assert "[" in masked
    for text in ("2024-05-01", "12,345円", "x @ y", "1234567", "東京都", "5-4-3-2-1", "3.14159"):
        assert mask_personal_data(text) == (text, 0)
    nested = {
        "id": "a@b.org",
        "prompt": "Mine is a.b@c.org",
        "thinking": {"task": ["call 090-1234-5678"]},
        "n": 3,
    }
    masked, found = mask_everywhere(nested)
    assert found == 2
    assert masked == {
        "id": "a@b.org",
        "prompt": "Mine is [EMAIL]",
        "thinking": {"task": ["call [PHONE]"]},
        "n": 3,
    }


def test_what_is_not_masked_stays_to_the_character() -> None:
    text = "㈱例①、ＡＢＣ　電話０３－５２５３－４１１１、メールａ＠ｂ．ｊｐ。ｶﾞｷﾞ"
    assert mask_personal_data(text) == ("㈱例①、ＡＢＣ　電話[PHONE]、メール[EMAIL]。ｶﾞｷﾞ", 2)


def test_invisible_characters_hide_nothing() -> None:
    text = "mail ta\u200bro@exam\u00adple.jp, tel 090-\u20601234-5678."
    assert mask_personal_data(text) == ("mail [EMAIL], tel [PHONE].", 2)


@pytest.mark.parametrize(("held_back", "recall"), [(False, 0.98), (True, 0.98)])
def test_the_strings_reach_their_recall_and_precision(held_back: bool, recall: float) -> None:
    rows = [row for row in labelled_strings() if row.held_back == held_back]
    result = score(rows, find_personal)
    assert result.recall >= recall
    assert result.precision >= 0.95


def test_forms_found_once_stay_found() -> None:
    rows = labelled_strings(VARIANTS)
    missed = [row.text for row in rows if score([row], find_personal).wrong]
    assert len(rows) > 500
    assert not missed


def test_masked_text_holds_nothing_more() -> None:
    for row in labelled_strings():
        masked, _ = mask_personal_data(row.text)
        assert mask_personal_data(masked) == (masked, 0), row.text


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet=ALPHABET, max_size=80)))
def test_spans_are_in_order_inside_the_text(text: str) -> None:
    found = find_personal(text)
    assert all(0 <= span.start < span.end <= len(text) for span in found)
    assert all(before.end <= after.start for before, after in pairwise(found))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(alphabet=ALPHABET, min_size=1, max_size=8), min_size=1, max_size=3))
def test_no_pattern_takes_long(pieces: list[str]) -> None:
    pattern = "".join(pieces)
    text = pattern * (4_000 // len(pattern))
    started = time.process_time()
    find_personal(text)
    assert time.process_time() - started < 1  # a hundredth of that is usual; 2^n is not


@pytest.mark.parametrize(
    "pattern",
    ["様", "山さん", "a@", "1-", "eyJ-", "市1-", "4111 ", "a:", "A ", "1 A A ", "password:"],
)
def test_time_does_not_grow_faster_than_the_text(pattern: str) -> None:
    def seconds(characters: int) -> float:
        text = pattern * (characters // len(pattern))
        started = time.process_time()
        find_personal(text)
        return time.process_time() - started

    short = min(seconds(2_000) for _ in range(3))
    assert min(seconds(16_000) for _ in range(2)) < 8 * short * 2 + 0.02
