"""Personal data is masked before anything else sees it."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

# Matched on NFKC text: full-width ＠ and digits count. A number needs separators or a length that
# dates and prices lack.
_RULES = (
    (
        "[EMAIL]",
        re.compile(r"[A-Za-z0-9._%+-]+\s?@\s?[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"),
    ),
    ("[CARD]", re.compile(r"(?<!\d)(?:\d{4}[ -]){3}\d{4}(?!\d)")),
    (
        "[PHONE]",
        re.compile(
            r"(?<![\d-])(?:\+\d{1,3}[ -]?)?(?:0\d{1,4}|\(\d{2,4}\)|\d{3})"
            r"[ -]\d{3,4}[ -]\d{4}(?![\d-])"
        ),
    ),
    ("[PHONE]", re.compile(r"(?<!\d)0[789]0\d{8}(?!\d)")),
)


def mask_personal_data(text: str) -> tuple[str, int]:
    """Replace e-mail addresses, phone and card numbers by their kind; return their count, too.

    A text that holds none comes back unchanged, not even normalised.
    """
    masked, total = unicodedata.normalize("NFKC", text), 0
    for mask, pattern in _RULES:
        masked, count = pattern.subn(mask, masked)
        total += count
    return (masked, total) if total else (text, 0)


def mask_everywhere(value: Any) -> tuple[Any, int]:
    """Apply `mask_personal_data` to every text inside a JSON value but keys and ids."""
    if isinstance(value, str):
        return mask_personal_data(value)
    if isinstance(value, list):
        items = [mask_everywhere(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    if isinstance(value, dict):
        masked, total = dict(value), 0
        for key in value.keys() - {"id", "contrast_of"}:
            masked[key], count = mask_everywhere(value[key])
            total += count
        return masked, total
    return value, 0
