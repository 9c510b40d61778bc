"""A view of a text in which full width, dashes and kanji digits are plain, character for character.

Detectors read the view; what they find is cut from the text itself, which stays as it is.
"""

from __future__ import annotations

import re
import unicodedata

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]")
_DASHES = dict.fromkeys("‐‑‒–—―−－﹣➖", "-")
_KANJI_DIGITS = str.maketrans("〇零○一二三四五六七八九のー", "000123456789--")
# A telephone number, an account; not 二三日 or 一九四五年.
_KANJI_RUN = re.compile(
    r"[〇零○一二三四五六七八九](?:[-() .・のー]{0,2}[〇零○一二三四五六七八九\d]){6,}"
)
_LONG_DASH = re.compile(r"(?<=\d)[ー・~〜](?=\d)")


class _Folding(dict[int, str]):
    """The NFKC form of every character that has one of length one; found when first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        form = unicodedata.normalize("NFKC", character)
        form = _DASHES.get(character) or (form if len(form) == 1 else character)
        decimal = unicodedata.decimal(form, None)
        self[code] = form if decimal is None else str(decimal)
        return self[code]


_FOLDING = _Folding()


def fold(text: str) -> tuple[str, list[int] | None]:
    """Return the view, and each character's place in the text (None: the same as in the view).

    Invisible characters are left out of the view: they part words for programs, not for readers.
    """
    if text.isascii():
        return text, None
    positions = None
    if _INVISIBLE.search(text):
        positions = [at for at, character in enumerate(text) if not _INVISIBLE.match(character)]
        text = _INVISIBLE.sub("", text)
    view = _LONG_DASH.sub("-", text.translate(_FOLDING))
    return _KANJI_RUN.sub(
        lambda run: run[0].translate(_KANJI_DIGITS).replace("ー", "-"), view
    ), positions
