from __future__ import annotations

import time

import pytest

from aegis.data.clean.texts import change_texts, normalise, tidy


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("ﾊﾟｿｺﾝを２０２６年にＡＢＣ社で", "パソコンを2026年にABC社で"),
        ("㈱アルファの①と②、Ⅳ章", "㈱アルファの①と②、Ⅳ章"),
        ("が", "が"),
        ("schÃ¶n", "schön"),
        ("a\u200bb\ufeffc\x07d\u202ee", "abcde"),
        ("one\r\ntwo\rthree\u3000 \n\n\n\n\n\nfour", "one\ntwo\nthree\n\n\nfour"),
        ("👩\u200d🚀が行く", "👩\u200d🚀が行く"),
        ("150－0001 スーパーー", "150－0001 スーパーー"),
    ],
)
def test_texts_become_what_was_meant(typed: str, meant: str) -> None:
    assert tidy(typed) == meant
    assert tidy(meant) == meant


def test_a_long_gap_takes_no_longer_than_its_length() -> None:
    begun = time.perf_counter()
    assert tidy("a" + " " * 100_000 + "b") == "a" + " " * 100_000 + "b"
    assert time.perf_counter() - begun < 2  # a quadratic search takes minutes


def test_names_and_ids_are_left_alone() -> None:
    row = {"id": "ＡＢ", "prompt": "ＡＢ", "source": "ＡＢ", "deep": [{"text": "ＡＢ"}], "n": 1}
    changed = {"id": "ＡＢ", "prompt": "AB", "source": "ＡＢ", "deep": [{"text": "AB"}], "n": 1}
    assert change_texts(row, tidy) == changed


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3+5", "3-5"),
        ("3 - 5は？", "3＋5は？"),
        ("C++", "C#"),
        ("2*3", "2/3"),
        ("$5", "5%"),
        ("−5", "5"),
    ],
)
def test_signs_that_carry_meaning_tell_texts_apart(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


def test_comparison_takes_forms_for_the_same() -> None:
    assert normalise("Co-operate, please!") == normalise("co operate please")
    assert normalise("3−5 は") == normalise("３-５　は？")
    assert normalise("㈱アルファ！  Ａ") == normalise("(株)アルファ a")
