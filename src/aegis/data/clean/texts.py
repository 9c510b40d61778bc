"""What is done to a text before anybody judges it, and what two texts are compared by."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Any

_NAMES = {"id", "contrast_of", "decision", "language", "provenance", "source"}
# Controls but tab and line break, soft hyphen, zero width but the joiners, direction marks, BOM.
_INVISIBLE = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u2069\ufeff\ufff9-\ufffc]"
)
_HALF_WIDTH_KANA = re.compile("[\uff61-\uff9f]+")
_FULL_WIDTH = {
    code: code - 0xFEE0
    for span in ((0xFF10, 0xFF1A), (0xFF21, 0xFF3B), (0xFF41, 0xFF5B))
    for code in range(*span)
}
_BLANK_LINES = re.compile(r"\n{4,}")
_ENDS = re.compile(r"(?<![ \t\u3000])[ \t\u3000]+$", re.MULTILINE)  # linear in long gaps
# Signs of calculation, programs and money tell texts apart, and so does a hyphen before a digit.
_PUNCTUATION = re.compile(r"[^\w\s+*/=<>#%&^|~$£¥€×÷±≤≥≠√-]")
_HYPHEN = re.compile(r"-(?!\s?\d)")
_PLAIN_ASCII = bytes(
    ord(_PUNCTUATION.sub(" ", chr(code).lower())) if code < 128 else code for code in range(256)
)
_BREAKS = re.compile("\r\n?|\u2028|\u2029|\x85")


@functools.lru_cache(16)
def normalise(text: str) -> str:
    """Return what makes two prompts the same: NFKC, lower case, one space, no punctuation.

    3+5 and 3-5 stay apart, C++ and C#, too.
    """
    if text.isascii():
        plain = text.encode().translate(_PLAIN_ASCII).decode()
    else:
        plain = unicodedata.normalize("NFKC", text).lower().replace("\N{MINUS SIGN}", "-")
        plain = _PUNCTUATION.sub(" ", plain)
    return " ".join((_HYPHEN.sub(" ", plain) if "-" in plain else plain).split())


def tidy(text: str) -> str:
    """Return the text as it should have been typed.

    Mojibake is undone; letters and their marks are composed (NFC); kana of half width and letters
    and digits of full width get their usual form; control characters and what is invisible go.
    NFKC would make 12 of ①② and (株) of ㈱, so it serves `normalise` alone.
    """
    if text.isascii():
        if text.isprintable():  # neither controls nor breaks
            return text.rstrip(" ")
    else:
        import ftfy
        from ftfy.badness import is_bad

        if is_bad(text):
            text = ftfy.fix_encoding(text)
        text = unicodedata.normalize("NFC", text).translate(_FULL_WIDTH)
        text = _HALF_WIDTH_KANA.sub(lambda kana: unicodedata.normalize("NFKC", kana[0]), text)
    text = _INVISIBLE.sub("", _BREAKS.sub("\n", text))
    return _BLANK_LINES.sub("\n\n\n", _ENDS.sub("", text))


def change_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Apply `change` to every text inside a row but to keys, ids and names."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [change_texts(item, change) for item in value]
    if isinstance(value, dict):
        return {
            key: item if key in _NAMES else change_texts(item, change)
            for key, item in value.items()
        }
    return value


@functools.lru_cache(64)
def repetition(text: str) -> float:
    """Return the share of windows that occurred before: near 0 for prose, 1 for a stuck generator.

    Windows are 6 characters wide, 2 in texts under 25 characters (a stuck generator stops early in
    Japanese, too).
    """
    width = 6 if len(text) >= 25 else 2
    windows = [text[i : i + width] for i in range(len(text) - width + 1)]
    return 0.0 if len(windows) < 8 else 1 - len(set(windows)) / len(windows)
