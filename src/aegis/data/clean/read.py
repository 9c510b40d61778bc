"""From a line of a file to an item: personal data masked first, then its texts made tidy."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegis.data.clean.steps import CleanStep, is_aside, run_steps
from aegis.data.clean.texts import change_texts, tidy
from aegis.data.formats.forms import recognised
from aegis.data.personal import mask_everywhere
from aegis.data.records import Item, Plain, Rejected, parse_item
from aegis.errors import DataError
from aegis.inputs.strict_json import parse_object
from aegis.protocol.language import detect_language

READING = (("personal", 2), ("text", 1), ("read", 2))
"""Names and versions of the steps before there is an item."""
MOST_BYTES = 1 << 24
PLACE, UNREADABLE = "(read from)", "(not a row)"
"""The fields of a line that stands for a row of another format: where it stood, and why it could
not be read."""
_SHOWN = 500
_PROMPTS = (
    "prompt",
    "text",
    "question",
    "context",
    "instruction",
    "query",
    "input",
    "sentence",
    "ctx",
    "problem",
)


@dataclass
class LineOutcome:
    """A line on its way: the item, if it has become one, and what each step tells of it.

    Args:
        came: the item as it was read, masked and tidy.
    """

    where: str
    item: Item | None = None
    came: Item | None = None
    content: dict[str, Any] = field(default_factory=dict)
    told: list[dict[str, Any]] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.item.id if self.item is not None else self.where

    def rejected(self) -> Rejected | None:
        """Return the line as it was set aside, if it was."""
        if not is_aside(self.told):
            return None
        content = self.item.to_json() if self.item is not None else self.content
        return Rejected(self.id, self.told[-1]["reason"], content)

    def run(self, steps: tuple[CleanStep, ...]) -> LineOutcome:
        """Take the steps that look at one item, unless it is set aside already."""
        if self.item is not None and not is_aside(self.told):
            self.item, _, told = run_steps(self.item, steps)
            self.told += told
        return self


def lines_of(path: Path, start: int, end: int, first: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield number and bytes of each line that is not blank; None for one that is too long."""
    with path.open("rb") as file:
        file.seek(start)
        number = first - 1
        while file.tell() < end and (line := file.readline(MOST_BYTES)):
            number += 1
            if len(line) == MOST_BYTES and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = file.readline(MOST_BYTES)
                yield number, None
            elif line.strip():
                yield number, line


def read_line(
    line: bytes | None, outcome: LineOutcome, *, held_out: bool = False, converted: bool = False
) -> None:
    """Find what the line holds, masked and tidy, or why it cannot be used."""
    try:
        row = parse_object(_decoded(line, outcome.where), outcome.where)
    except DataError as error:
        shown = (line or b"").decode("utf-8", "replace")
        outcome.content = mask_everywhere({"line": shown})[0]
        return _unusable(outcome, error)
    if converted:
        outcome.where = row.pop(PLACE)
    where = outcome.where
    outcome.content = masked = _told(outcome, row)
    try:
        if converted and UNREADABLE in row:
            raise DataError(f"{where}: {row[UNREADABLE]}")
        outcome.item = outcome.came = (
            _held_out(masked, where)
            if held_out
            else parse_item(recognised(masked, where), where=where)
        )
    except DataError as error:
        _unusable(outcome, error)


def _told(outcome: LineOutcome, row: dict[str, Any]) -> dict[str, Any]:
    """Return the row masked and tidy; note what changed, but nothing of what was masked."""
    masked, count = mask_everywhere(row)
    if count:
        fields = [name for name in row if masked[name] != row[name]]
        outcome.told.append({"step": "personal", "masked": count, "fields": fields})
    neat = change_texts(masked, tidy)
    if neat != masked:
        before = {name: masked[name] for name in masked if neat[name] != masked[name]}
        outcome.told.append({"step": "text", "before": {k: _shown(v) for k, v in before.items()}})
    return neat


def _held_out(row: dict[str, Any], where: str) -> Item:
    """Return the prompt of a held-out row of any set, as it would stand in training data."""
    with contextlib.suppress(DataError):
        row = recognised(row, where)
    text = next((row[name] for name in _PROMPTS if isinstance(row.get(name), str)), None)
    if not text or not text.strip():
        names = ", ".join(_PROMPTS)
        raise DataError(f"{where}: holds none of {names}; a held-out row needs a prompt")
    return Plain(where, text.strip(), detect_language(text), "held-out")


def _decoded(line: bytes | None, where: str) -> str | None:
    if line is None:
        return None
    try:
        return line.decode("utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        place = f"not UTF-8 at byte {error.start}"
        raise DataError(f"{where}: {place}; save the file as UTF-8") from error


def _unusable(outcome: LineOutcome, error: DataError) -> None:
    reason = str(error).removeprefix(f"{outcome.where}: ")
    outcome.told.append({"step": "read", "reason": reason})


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
