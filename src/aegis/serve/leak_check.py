"""The last check of an answer before it leaves: nothing private in it, whichever way it is written.

The sections are generated apart from the answer, so nothing private stands in it by construction;
what remains is a model that copies. Everything is compared after undoing what hides a text from a
plain search: case, width, accents, entities, percent-escapes, invisible characters, spaces and
punctuation.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from typing import Literal

from aegis.protocol.spelling import hidden_text, undisguised
from aegis.protocol.thinking import looks_like_a_tag

Leak = Literal["tag", "not text", "canary", "secret", "quotation"]

_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffd]")
_WORD = re.compile(r"[A-Za-z0-9]+(?:[-_.:][A-Za-z0-9]+)*")
_LETTER_DIGIT_CHANGE = re.compile(r"(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])")
# Letters and digits; with spaces 40 characters or a few less. A short fact stands in both.
_QUOTATION = {"en": 30, "ja": 20}
_PIECE = 4
_GAP, _WIDE_GAP = 3, 40


def find_leak(
    final: str, private: Iterable[str], *, query: str, canary: str | None = None
) -> Leak | None:
    """Return why the answer must not leave; None if it may.

    Args:
        private: the sections' texts.
        query: what was asked; words that the asker wrote are no secret.
        canary: a random string that only private text holds.
    """
    if _CONTROL.search(final):
        return "not text"
    readings = {undisguised(final), undisguised(final, escapes_first=True), hidden_text(final)}
    if any(looks_like_a_tag(text) for text in (final, *readings)):
        return "tag"
    asked, sections = alphanumeric(undisguised(query)), [undisguised(text) for text in private]
    secrets = {word for text in sections for word in key_like_words(text)}
    for answer in {alphanumeric(text) for text in readings}:
        if canary and _spells(answer, alphanumeric(undisguised(canary))):
            return "canary"
        if any(secret not in asked and _spells(answer, secret) for secret in secrets):
            return "secret"
        if any(_quotes(answer, alphanumeric(text), asked) for text in sections):
            return "quotation"
    return None


def alphanumeric(text: str) -> str:
    """Return letters and digits alone, in one case."""
    return _NOT_ALPHANUMERIC.sub("", text.casefold())


def key_like_words(text: str) -> list[str]:
    """Return the letters and digits of what is written like a key or a code name: letters and
    digits mixed, or many capitals."""
    words = []
    for word in _WORD.findall(text):
        bare = alphanumeric(word)
        mixed = len(_LETTER_DIGIT_CHANGE.findall(word)) >= 2 and sum(map(str.isdigit, word)) >= 2
        if (len(bare) >= 8 and mixed) or (len(bare) >= 12 and word.isupper()):
            words.append(bare)
    return words


def _spells(answer: str, secret: str) -> bool:
    """Return whether the secret stands in the answer: whole, backwards, for a half or more in
    pieces, or with other characters between."""
    return any(
        _has_pieces(answer, text) or _has_scattered(answer, text) for text in (secret, secret[::-1])
    )


def _has_pieces(answer: str, secret: str) -> bool:
    covered = {
        place
        for start in range(max(1, len(secret) - _PIECE + 1))
        if secret[start : start + _PIECE] in answer
        for place in range(start, start + _PIECE)
    }
    return len(covered) >= max(8, len(secret) / 2) or secret in answer


def _has_scattered(answer: str, secret: str) -> bool:
    """Return whether the secret's characters stand in the answer in order, close to one another;
    the more of them are digits, the less close."""
    if not set(secret) <= set(answer):
        return False
    unlikely = len(secret) >= 12 and sum(map(str.isdigit, secret)) >= 4  # to be there by accident
    gap = _WIDE_GAP if unlikely else _GAP
    ends = _places(answer, secret[0])
    for character in secret[1:]:
        places = _places(answer, character)
        ends = [place for place in places if _any_within(ends, place - gap - 1, place)]
    return bool(ends)


def _places(text: str, character: str) -> list[int]:
    return [place for place, other in enumerate(text) if other == character]


def _any_within(places: list[int], low: int, below: int) -> bool:
    first = bisect_left(places, low)
    return first < len(places) and places[first] < below


def _quotes(answer: str, private: str, asked: str) -> bool:
    """Return whether a long run of the private text, which the asker did not write, is in the
    answer."""
    size = _QUOTATION["ja" if _JAPANESE.search(answer) else "en"]
    step = size // 2  # every run of `size` holds an aligned piece of half that
    for start in range(0, len(answer) - step + 1, step):
        if answer[start : start + step] not in private:
            continue
        for first in range(max(0, start - step), min(start, len(answer) - size) + 1):
            run = answer[first : first + size]
            if run in private and run not in asked:
                return True
    return False
