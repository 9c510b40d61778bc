"""The last look at an answer before it leaves: nothing private in it, whichever way it is written.

The sections are generated apart from the answer, so nothing private stands in it by construction;
what is left is a model that copies. Everything is compared after undoing what hides a text from a
plain search: case, width, accents, entities, percent-escapes, invisible characters, spaces and
punctuation.
"""

from __future__ import annotations

import html
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable
from typing import Literal
from urllib.parse import unquote

from aegis.protocol.thinking import looks_like_a_tag

Leak = Literal["tag", "not text", "canary", "secret", "quotation"]

_HIDDEN = re.compile(r"[\W_]+")
_MARKS = re.compile(  # what is combined with a letter, or not seen at all
    "[\u00ad\u0300-\u036f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3099\u309a\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e01ef]"
)
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffd]")
_JOINED = re.compile(r"[A-Za-z0-9]+(?:[-_.:][A-Za-z0-9]+)*")
_TURNS = re.compile(r"(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])")
_RUN = {
    "en": 24,
    "ja": 12,
}  # of the 252 dialogues that people wrote for AEGIS, one answer shares so long a run with its thinking
_PIECE = 4
_GAP, _WIDE_GAP = 3, 40


def find_leak(
    final: str, private: Iterable[str], *, query: str, canary: str | None = None
) -> Leak | None:
    """Why the answer must not leave; None if it may.

    Args:
        private: the sections' texts.
        query: what was asked; words that the asker wrote are no secret.
        canary: a random string that only private text holds.
    """
    if _CONTROL.search(final):
        return "not text"
    readings = {undisguised(final), undisguised(final, escapes_first=True)}
    if any(looks_like_a_tag(text) for text in (final, *readings)):
        return "tag"
    asked, kept = plain(query), [undisguised(text) for text in private]
    hidden = {secret for text in kept for secret in key_like_words(text)}
    for said in {_bare(text) for text in readings}:
        if canary and _spelled(plain(canary), said):
            return "canary"
        if any(secret not in asked and _spelled(secret, said) for secret in hidden):
            return "secret"
        if any(_quotes(said, _bare(text), asked) for text in kept):
            return "quotation"
    return None


def undisguised(text: str, *, escapes_first: bool = False) -> str:
    """The text without entities, percent-escapes, invisible characters, odd widths and accents,
    four layers deep.

    Args:
        escapes_first: an invisible character ends an entity without a semicolon; otherwise it may
            stand inside one.
    """
    steps = (_unescaped, _visible) if escapes_first else (_visible, _unescaped)
    for _ in range(4):
        before = text
        for step in steps:
            text = step(text)
        if text == before:
            break
    return text


def _unescaped(text: str) -> str:
    if "&" in text:
        text = html.unescape(text)
    return unquote(text, errors="ignore") if "%" in text else text


def _visible(text: str) -> str:
    return text if text.isascii() else _MARKS.sub("", unicodedata.normalize("NFKD", text))


def plain(text: str) -> str:
    """Letters and digits alone, in one case."""
    return _bare(undisguised(text))


def _bare(text: str) -> str:
    return _HIDDEN.sub("", text.casefold())


def key_like_words(text: str) -> list[str]:
    """What is written like a key or a code name, as `plain` has it: letters and digits mixed, or
    many capitals."""
    found = []
    for word in _JOINED.findall(text):
        letters_digits = plain(word)
        if len(letters_digits) < 8:
            continue
        mixed = len(_TURNS.findall(word)) >= 2 and sum(c.isdigit() for c in word) >= 2
        if mixed or (len(letters_digits) >= 12 and word.isupper()):
            found.append(letters_digits)
    return found


def _spelled(secret: str, said: str) -> bool:
    """The secret stands in the text: whole, backwards, for a half or more in pieces, or with other
    characters between."""
    return any(_pieces(way, said) or _scattered(way, said) for way in (secret, secret[::-1]))


def _pieces(secret: str, said: str) -> bool:
    starts = range(max(1, len(secret) - _PIECE + 1))
    covered = {
        place
        for start in starts
        if secret[start : start + _PIECE] in said
        for place in range(start, start + _PIECE)
    }
    return len(covered) >= max(8, len(secret) / 2) or secret in said


def _scattered(secret: str, said: str) -> bool:
    """Its characters stand in the text in order, close to one another; the more of them are digits,
    the less close."""
    if not set(secret) <= set(said):
        return False
    long = (
        len(secret) >= 12 and sum(character.isdigit() for character in secret) >= 4
    )  # such a row is no accident
    gap = _WIDE_GAP if long else _GAP
    ends = _places(secret[0], said)
    for character in secret[1:]:
        ends = [
            place for place in _places(character, said) if _within(ends, place - gap - 1, place)
        ]
    return bool(ends)


def _places(character: str, said: str) -> list[int]:
    return [place for place, found in enumerate(said) if found == character]


def _within(places: list[int], least: int, below: int) -> bool:
    first = bisect_left(places, least)
    return first < len(places) and places[first] < below


def _quotes(said: str, private: str, asked: str) -> bool:
    """A long run of the private text stands in the answer, and the asker did not write it."""
    size = _RUN["ja" if _JAPANESE.search(said) else "en"]
    step = size // 2  # every run of `size` holds an aligned piece of half that
    for start in range(0, len(said) - step + 1, step):
        if said[start : start + step] not in private:
            continue
        for first in range(max(0, start - step), min(start, len(said) - size) + 1):
            run = said[first : first + size]
            if run in private and run not in asked:
                return True
    return False
