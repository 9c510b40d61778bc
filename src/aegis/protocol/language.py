"""The two languages AEGIS is built for, told apart by their letters."""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["ja", "en"]
LANGUAGES: tuple[Language, ...] = ("ja", "en")
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


def detect_language(text: str) -> Language:
    """Return `ja` if any kana or kanji is in the text, `en` otherwise."""
    return "ja" if _JAPANESE.search(text) else "en"
