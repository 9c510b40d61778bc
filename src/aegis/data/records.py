"""The two kinds of training material, and JSON Lines files of them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aegis.errors import DataError
from aegis.protocol.decisions import Decision, parse_decision
from aegis.protocol.language import LANGUAGES, detect_language
from aegis.protocol.stance import require_consistent
from aegis.protocol.thinking import Thinking

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """A prompt and the right decision; with `thinking`, the whole right response."""

    id: str
    prompt: str
    decision: Decision
    language: str
    domain: str
    rationale: str | None = None
    contrast_of: str | None = None
    thinking: Thinking | None = None
    source: str = "user"

    def to_json(self) -> dict[str, Any]:
        flat = {
            "id": self.id,
            "prompt": self.prompt,
            "decision": self.decision.name,
            "language": self.language,
            "domain": self.domain,
            "rationale": self.rationale,
            "contrast_of": self.contrast_of,
            "source": self.source,
        }
        kept = {key: value for key, value in flat.items() if value is not None}
        return kept | (self.thinking.to_record() if self.thinking else {})


@dataclass(frozen=True)
class Side:
    """One of the two responses of a pair."""

    decision: Decision
    thinking: Thinking

    def to_json(self) -> dict[str, Any]:
        return {"decision": self.decision.name, **self.thinking.to_record()}


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, the better one first."""

    id: str
    prompt: str
    language: str
    domain: str
    chosen: Side
    rejected: Side
    source: str = "user"
    split: str | None = None

    def to_json(self) -> dict[str, Any]:
        sides = {"chosen": self.chosen.to_json(), "rejected": self.rejected.to_json()}
        head = {
            "id": self.id,
            "prompt": self.prompt,
            "language": self.language,
            "domain": self.domain,
        }
        return (
            head | sides | {"source": self.source} | ({"split": self.split} if self.split else {})
        )


@dataclass
class Rejected:
    """What was set aside, and why."""

    where: str
    reason: str
    content: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"where": self.where, "reason": self.reason, "content": self.content}


def parse_record(raw: dict[str, Any], *, where: str) -> Record:
    """Return the record in `raw`; `where` opens every error message.

    Raises:
        DataError: if a field is missing, misspelt, of the wrong type or impossible.
    """
    allowed = {
        "id",
        "prompt",
        "decision",
        "language",
        "domain",
        "rationale",
        "contrast_of",
        "source",
        "thinking",
        "final",
    }
    _no_misspelling(raw, allowed, where)
    if ("thinking" in raw) != ("final" in raw):
        raise DataError(f"{where}: thinking and final belong together; give both or neither")
    prompt = _text(raw, "prompt", where)
    decision = parse_decision(raw.get("decision"), where=where)
    thinking = (
        Thinking.from_bodies(raw["thinking"], raw["final"], where=where)
        if "thinking" in raw
        else None
    )
    if thinking:
        require_consistent(decision, thinking, where=where)
    return Record(
        id=_text(raw, "id", where, default=where),
        prompt=prompt,
        decision=decision,
        language=_language(raw, prompt, where),
        domain=_text(raw, "domain", where, default="general"),
        rationale=_optional(raw, "rationale", where),
        contrast_of=_optional(raw, "contrast_of", where),
        thinking=thinking,
        source=_text(raw, "source", where, default="user"),
    )


def parse_pair(raw: dict[str, Any], *, where: str) -> Pair:
    """As `parse_record`, for preference pairs; equal sides are an error."""
    _no_misspelling(
        raw, {"id", "prompt", "language", "domain", "chosen", "rejected", "source", "split"}, where
    )
    prompt = _text(raw, "prompt", where)
    chosen, rejected = (_side(raw, name, where) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError(f"{where}: chosen and rejected are equal; a pair must differ")
    return Pair(
        id=_text(raw, "id", where, default=where),
        prompt=prompt,
        language=_language(raw, prompt, where),
        domain=_text(raw, "domain", where, default="general"),
        chosen=chosen,
        rejected=rejected,
        source=_text(raw, "source", where, default="user"),
        split=_optional(raw, "split", where),
    )


def read_jsonl(
    path: Path, parse: Callable[..., T], *, skip_bad: bool = False, name: str | None = None
) -> tuple[list[T], list[Rejected]]:
    """Return what `parse(raw, where=…)` makes of each line, and with `skip_bad` the lines that it
    could not.

    Args:
        path: a JSON Lines file in UTF-8; blank lines are passed over.
        parse: raises DataError for what it cannot use.
        skip_bad: set bad lines aside instead of raising.
        name: how messages call the file; its path by default.

    Raises:
        DataError: if the file cannot be read, holds no record, or (without skip_bad) a line is bad.
    """
    shown = name or str(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(
            f"{shown}: cannot be read ({error.strerror}); give an existing JSON Lines file"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from error
    good: list[T] = []
    bad: list[Rejected] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{shown}:{number}"
        try:
            good.append(parse(_object(line, where), where=where))
        except DataError as error:
            if not skip_bad:
                remedy = " (or pass --skip-bad to set such lines aside in rejected.jsonl)"
                raise DataError(f"{error}{remedy}") from error
            bad.append(Rejected(where, str(error).removeprefix(f"{where}: "), {"line": line}))
    if not good:
        raise DataError(f"{shown}: holds no usable record; give a file with one JSON object a line")
    return good, bad


def write_jsonl(path: Path, items: Iterable[Any]) -> None:
    """Write one JSON object a line; the artifact that holds the file makes it durable."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for item in items:
            file.write(json.dumps(item.to_json(), ensure_ascii=False, allow_nan=False) + "\n")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        raw = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or (
            "nested too deeply" if isinstance(error, RecursionError) else str(error)
        )
        raise DataError(f"{where}: not valid JSON ({reason}); correct the line") from error
    if not isinstance(raw, dict):
        raise DataError(
            f"{where}: must be a JSON object, got {type(raw).__name__}; correct the line"
        )
    return raw


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _no_misspelling(raw: dict[str, Any], allowed: set[str], where: str) -> None:
    """Fields of the user's own are passed over; one that looks like ours, misspelt, is an error."""
    for name in sorted(raw.keys() - allowed):
        if near := difflib.get_close_matches(name, allowed - raw.keys(), n=1, cutoff=0.8):
            raise DataError(f"{where}: {name!r} is not a field; did you mean {near[0]!r}?")


def _text(raw: dict[str, Any], name: str, where: str, *, default: str | None = None) -> str:
    return require_text(raw.get(name, default), name, where)


def require_text(found: object, name: str, where: str) -> str:
    """The text without white space around it.

    Raises:
        DataError: if it is not text, empty, or holds a lone surrogate.
    """
    if not isinstance(found, str) or not found.strip():
        raise DataError(
            f"{where}: {name} must be non-empty text, got {_shown(found)}; correct the line"
        )
    try:
        found.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {name} holds a lone surrogate, which is not text; correct the line"
        ) from error
    return found.strip()


def _optional(raw: dict[str, Any], name: str, where: str) -> str | None:
    return None if raw.get(name) is None else _text(raw, name, where)


def _language(raw: dict[str, Any], prompt: str, where: str) -> str:
    found = raw.get("language", detect_language(prompt))
    if found not in LANGUAGES:
        raise DataError(
            f"{where}: language must be one of {', '.join(LANGUAGES)}, got {_shown(found)}"
        )
    return found


def _side(raw: dict[str, Any], name: str, where: str) -> Side:
    side = raw.get(name)
    if not isinstance(side, dict):
        raise DataError(
            f"{where}: {name} must be an object with decision, thinking and final, got {_shown(side)}"
        )
    _no_misspelling(side, {"decision", "thinking", "final"}, f"{where}: {name}")
    decision = parse_decision(side.get("decision"), where=f"{where}: {name}")
    thinking = Thinking.from_bodies(
        side.get("thinking", {}), side.get("final"), where=f"{where}: {name}"
    )
    require_consistent(decision, thinking, where=f"{where}: {name}")
    return Side(decision=decision, thinking=thinking)


def _shown(found: object) -> str:
    text = repr(found)
    return text if len(text) <= 60 else text[:57] + "…"
