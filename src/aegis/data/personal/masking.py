"""Personal data is masked before anything else sees it."""

from __future__ import annotations

from typing import Any

from aegis.data.personal.detect import find_personal


def mask_personal_data(text: str) -> tuple[str, int]:
    """Replace personal data and secrets by their kind, as in [EMAIL]; return their count, too.

    Everything else stays as it is, to the character.
    """
    found = find_personal(text)
    parts, at = [], 0
    for start, end, kind in found:
        parts += [text[at:start], f"[{kind}]"]
        at = end
    return "".join([*parts, text[at:]]), len(found)


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
