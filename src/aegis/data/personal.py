"""Personal data is masked before anything else sees it."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

# Matched on NFKC text: full-width ＠ and digits count. A number needs separators or a length that dates and prices lack.
_RULES = (
    (
        "[EMAIL]",
        re.compile(r"[A-Za-z0-9._%+-]+\s?@\s?[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"),
    ),
    ("[CARD]", re.compile(r"(?<!\d)(?:\d{4}[ -]){3}\d{4}(?!\d)")),
    (
        "[PHONE]",
        re.compile(
            r"(?<![\d-])(?:\+\d{1,3}[ -]?)?(?:0\d{1,4}|\(\d{2,4}\)|\d{3})[ -]\d{3,4}[ -]\d{4}(?![\d-])"
        ),
    ),
    ("[PHONE]", re.compile(r"(?<!\d)0[789]0\d{8}(?!\d)")),
)


def mask_personal_data(text: str) -> tuple[str, int]:
    """Return the text with e-mail addresses, phone and card numbers replaced by their kind, and how
    many there were.

    The text comes back unchanged, not even normalised, when it holds none.
    """
    masked, total = unicodedata.normalize("NFKC", text), 0
    for mask, pattern in _RULES:
        masked, found = pattern.subn(mask, masked)
        total += found
    return (masked, total) if total else (text, 0)


def mask_everywhere(value: Any) -> tuple[Any, int]:
    """As `mask_personal_data`, for every text inside a JSON value; keys and ids stay as they
    are."""
    if isinstance(value, str):
        return mask_personal_data(value)
    if isinstance(value, list):
        items = [mask_everywhere(item) for item in value]
        return [item for item, _ in items], sum(found for _, found in items)
    if isinstance(value, dict):
        fields = {
            key: (item, 0) if key in ("id", "contrast_of") else mask_everywhere(item)
            for key, item in value.items()
        }
        return {key: item for key, (item, _) in fields.items()}, sum(
            found for _, found in fields.values()
        )
    return value, 0
