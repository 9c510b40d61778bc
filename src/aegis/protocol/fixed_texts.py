"""What is said where the model's own words must not be: short, fixed, in the language of the
question. The words are in fixed_texts.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

from aegis.protocol.decisions import Decision
from aegis.protocol.language import Language, detect_language

Country = Literal["JP", "US", "UK", "international"]
_TEXTS = json.loads(Path(__file__).with_name("fixed_texts.json").read_text(encoding="utf-8"))
FIXED: dict[Decision, dict[str, str]] = {
    Decision[name]: texts for name, texts in _TEXTS["decided"].items()
}
WITHHELD: dict[str, str] = _TEXTS["withheld"]
"""In place of an allowed answer that a check kept back."""


def fixed_text(decision: Decision, language: str) -> str:
    """Return the fixed text of a decision; ALLOW has none and raises KeyError."""
    return FIXED[decision][language]


def crisis_text(language: Language, country: Country | None = None) -> str:
    """Return what somebody in crisis is told.

    Args:
        country: whose help lines are named; None: Japan's in Japanese, else where to find one's
            own.
    """
    lines = _TEXTS["help lines"][country or ("JP" if language == "ja" else "international")]
    return _TEXTS["crisis"][language].format(**lines[language])


def decided_text(
    decision: Decision, prompt: str, *, crisis: bool, country: Country | None = None
) -> str:
    """Return the fixed text for a question about which this was decided; ALLOW has none.

    Args:
        prompt: its language is the text's.
        crisis: the asker is in one, as `is_crisis` says.
        country: as for `crisis_text`.
    """
    language = detect_language(prompt)
    if decision is Decision.ESCALATION and crisis:
        return crisis_text(language, country)
    return fixed_text(decision, language)


def is_fixed_text(text: str) -> bool:
    """Return whether this is one of the texts that decline, withhold or hand over; what somebody
    in crisis is told is none: the crisis is not over with it."""
    return text.strip() in _ALL


def begins_as_fixed_text(text: str) -> bool:
    """Return whether this begins as one of those texts does: said of what is allowed, it would
    promise a person whom nobody calls."""
    return text.strip().startswith(_BEGINNINGS)


_ALL = {text for texts in (*FIXED.values(), WITHHELD) for text in texts.values()}
_BEGINNINGS = tuple(re.split(r"(?<=[.。])", text)[0] for text in _ALL)
