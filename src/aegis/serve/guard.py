"""The last look at an answer before it leaves: nothing private in it, whichever way it is written.

The sections are generated apart from the answer, so nothing private stands in it by construction; what is left is a model
that copies. Everything is compared after undoing what hides a text from a plain search: case, width, accents, entities,
percent-escapes, invisible characters, spaces and punctuation.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal
from urllib.parse import unquote

from aegis.thinking import looks_like_a_tag

Leak = Literal["tag", "not text", "canary", "secret", "quotation"]

_HIDDEN = re.compile(r"[\W_]+")
_MARKS = re.compile(r"[\u0300-\u036f\u3099\u309a]")
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffd]")
_JOINED = re.compile(r"[A-Za-z0-9]+(?:[-_.:][A-Za-z0-9]+)*")
_TURNS = re.compile(r"(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])")
_RUN = {
    "en": 24,
    "ja": 12,
}  # of the 252 dialogues that people wrote for AEGIS, one answer shares so long a run with its thinking
_PIECE = 4
_GAP = 3


def leak(final: str, private: Iterable[str], *, query: str, canary: str | None = None) -> Leak | None:
    """Why the answer must not leave; None if it may.

    Args:
        private: the sections' texts.
        query: what was asked; words that the asker wrote are no secret.
        canary: a random string that only private text holds.
    """
    if _CONTROL.search(final):
        return "not text"
    if looks_like_a_tag(final) or looks_like_a_tag(undisguised(final)):
        return "tag"
    said, asked, kept = plain(final), plain(query), [undisguised(text) for text in private]
    if canary and _spelled(plain(canary), said):
        return "canary"
    for secret in {secret for text in kept for secret in secrets(text)}:
        if secret not in asked and _spelled(secret, said):
            return "secret"
    if any(_quotes(said, plain(text), asked) for text in kept):
        return "quotation"
    return None


def undisguised(text: str) -> str:
    """The text without entities, percent-escapes, odd widths and accents; at most three layers deep."""
    for _ in range(3):
        before = text
        if "&" in text:
            text = html.unescape(text)
        if "%" in text:
            text = unquote(text, errors="ignore")
        if text == before:
            break
    return text if text.isascii() else _MARKS.sub("", unicodedata.normalize("NFKD", text))


def plain(text: str) -> str:
    """Letters and digits alone, in one case."""
    return _HIDDEN.sub("", undisguised(text).casefold())


def secrets(text: str) -> list[str]:
    """What is written like a key or a code name, as `plain` has it: letters and digits mixed, or many capitals."""
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
    """The secret stands in the text: whole, backwards, for a half or more in pieces, or with a few characters between."""
    return any(_pieces(way, said) or _scattered(way, said) for way in (secret, secret[::-1]))


def _pieces(secret: str, said: str) -> bool:
    starts = range(max(1, len(secret) - _PIECE + 1))
    covered = {place for start in starts if secret[start : start + _PIECE] in said for place in range(start, start + _PIECE)}
    return len(covered) >= max(8, len(secret) / 2) or secret in said


def _scattered(secret: str, said: str) -> bool:
    ends = {place for place, character in enumerate(said) if character == secret[0]}
    for character in secret[1:]:
        if not ends:
            return False
        reached = {place + step for place in ends for step in range(1, _GAP + 2)}
        ends = {place for place in reached if place < len(said) and said[place] == character}
    return bool(ends)


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
