"""What every detector returns, and the two ways of finding it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Texts are compared in ASCII letters and digits, and Japanese stands beside them without a space:
# \b and \w would count 様 as part of a word.
NO_WORD_BEFORE = r"(?<![0-9A-Za-z_])"
NO_WORD_AFTER = r"(?![0-9A-Za-z_])"
CONTEXT_CHARACTERS = 40


class Span(NamedTuple):
    """Personal data of one kind from `start` up to `end`, in characters of the text."""

    start: int
    end: int
    kind: str


Detector = Callable[[str], Iterator[Span]]


def spans(
    pattern: re.Pattern[str], text: str, kind: str, *, when: Callable[[str], object] | None = None
) -> Iterator[Span]:
    """Yield each match (its group `value`, if it has one) for whose text `when` holds."""
    group = "value" if "value" in pattern.groupindex else 0
    for match in pattern.finditer(text):
        if match.group(group) and (when is None or when(match.group(group))):
            yield Span(*match.span(group), kind)


def context_before(text: str, start: int, characters: int = CONTEXT_CHARACTERS) -> str:
    """Return what stands before a position."""
    return text[max(0, start - characters) : start]


def digits_of(text: str) -> str:
    """Return the digits of a text."""
    return "".join(character for character in text if character in "0123456789")
