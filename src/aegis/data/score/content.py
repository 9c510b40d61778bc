"""What a text speaks of: its words without the grammar, in English and Japanese."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_STOP_WORDS = """
a about after all allow allowed also am an and answer answers any are as ask asked asks at
be been before being but by can could decision deny did do does escalation for from get
give given go had has have he her here him his how i if in into is it its just let like
make may me more most must my no none not of on one only or other our out over own please
question refuse request said say says she should so some such tell than that the their
them then there these they this to too up us use user users very want wants was way we
were what when where which while who whom whose why will with would you your
"""
_STOP = frozenset(_STOP_WORDS.split())
_STOP_KANJI = frozenset(
    "人方法教何用言求知者問題質答事物出来的等今時分思見判断明説説明例的性一三四五六七八九十"
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'’]+|\d+|[ァ-ヴー]{2,}|[一-鿿々]+")
_SUFFIX = re.compile(r"(?:ing|edly|ed|ies|es|s|ly|er|ation|ment)$")


def terms(text: str) -> set[str]:
    """Return the stems of English content words, katakana words, numbers, and each kanji."""
    found: set[str] = set()
    for word in _WORD.findall(unicodedata.normalize("NFKC", text)):
        if word[0] >= "一":
            found |= set(word) - _STOP_KANJI
        elif word[0].isascii():
            lower = word.lower().replace("’", "'").removesuffix("'s")
            if lower not in _STOP:
                found.add(_SUFFIX.sub("", lower)[:6] if len(lower) > 4 else lower)
        else:
            found.add(word)
    return found


def amount(text: str) -> float:
    """Return about how many content words a text has, each counted once: two letters of Japanese
    beside kanji and katakana count as much as an English word."""
    text = unicodedata.normalize("NFKC", text)
    words = set(_WORD.findall(text))
    return sum(_weight(word) for word in words)


def shared(text: str, others: Iterable[str]) -> int:
    """Count the terms of a text that stand in one of the others."""
    return len(terms(text) & set().union(*map(terms, others)))


def _weight(word: str) -> float:
    if word[0] >= "一":
        return max(1.0, len(word) / 2)
    return 0.0 if word.lower() in _STOP else 1.0
