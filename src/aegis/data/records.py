"""What training material is: records, pairs and plain texts, and JSON Lines files of them."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from aegis.errors import DataError
from aegis.inputs.strict_json import json_lines, parse_object
from aegis.protocol.decisions import Decision, parse_decision
from aegis.protocol.language import LANGUAGES, detect_language
from aegis.protocol.stance import require_consistent
from aegis.protocol.thinking import Thinking

T = TypeVar("T")
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Row:
    """A frozen dataclass that goes into a data file.

    None is left out, thinking is two fields, the user's own fields stand beside ours.
    """

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for name, value in vars(self).items():
            if value is None:
                continue
            if type(value) is str:
                row[name] = value
            elif isinstance(value, Thinking):
                row |= value.to_record()
            elif isinstance(value, Decision):
                row[name] = value.name
            elif name == "extra":
                row |= value
            else:
                row[name] = value.to_json() if isinstance(value, _Row) else value
        return row


@dataclass(frozen=True)
class Provenance(_Row):
    """Where an item comes from, as far as it is known.

    Args:
        source: the set, site or person.
        url: the page or file.
        backend: what wrote it: `codex`, `gemini`, `http`, `local`, `web`, `person`.
        model: the model's name.
        licence: its SPDX name, or the terms' own words.
        time: when it was written or fetched, in UTC, as 2026-11-30T12:00:00Z.
        prompt_version: of the prompts that asked for it.
        cost: in US dollars.
        robots: what robots.txt said when the page was fetched.
    """

    source: str | None = None
    url: str | None = None
    backend: str | None = None
    model: str | None = None
    licence: str | None = None
    time: str | None = None
    prompt_version: str | None = None
    cost: float | None = None
    robots: str | None = None

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)


_PROVENANCE = TypeAdapter(Provenance)


@dataclass(frozen=True)
class Record(_Row):
    """A prompt and the right decision; with `thinking`, the whole right response.

    Args:
        attack: the template that the prompt is dressed in, where there is one; figures stand apart
            for each.
    """

    id: str
    prompt: str
    decision: Decision
    language: str
    domain: str
    rationale: str | None = None
    contrast_of: str | None = None
    source: str = "user"
    thinking: Thinking | None = None
    attack: str | None = None
    provenance: Provenance | None = None
    extra: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Side(_Row):
    """One of the two responses of a pair."""

    decision: Decision
    thinking: Thinking


@dataclass(frozen=True)
class Pair(_Row):
    """Two responses to one prompt, the better one first."""

    id: str
    prompt: str
    language: str
    domain: str
    chosen: Side
    rejected: Side
    source: str = "user"
    split: str | None = None
    provenance: Provenance | None = None
    extra: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Plain(_Row):
    """A text, or a prompt with its answer, that nobody has decided on yet."""

    id: str
    text: str
    language: str
    domain: str
    response: str | None = None
    source: str = "user"
    provenance: Provenance | None = None
    extra: dict[str, Any] = field(default_factory=dict, hash=False)


Item = Record | Pair | Plain


@dataclass(frozen=True)
class Rejected(_Row):
    """What was set aside, and why."""

    where: str
    reason: str
    content: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def item(cls, item: Item, reason: str) -> Rejected:
        """Set a record or pair aside whole."""
        return cls(item.id, reason, item.to_json())


def parse_record(raw: dict[str, Any], *, where: str) -> Record:
    """Return the record in `raw`; `where` opens every error message.

    Raises:
        DataError: if a field is missing, misspelt, of the wrong type or impossible.
    """
    extra = _own_fields(raw, {*_names(Record), "final"}, where)
    if ("thinking" in raw) != ("final" in raw):
        raise DataError(f"{where}: thinking and final belong together; give both or neither")
    shared = _shared_fields(raw, where)
    decision = parse_decision(raw.get("decision"), where=where)
    return Record(
        **shared,
        decision=decision,
        rationale=_optional(raw, "rationale", where),
        contrast_of=_optional(raw, "contrast_of", where),
        thinking=_thinking(raw, decision, where) if "thinking" in raw else None,
        attack=_optional(raw, "attack", where),
        provenance=_provenance(raw, where),
        extra=extra,
    )


def parse_pair(raw: dict[str, Any], *, where: str) -> Pair:
    """Return the preference pair in `raw`, as `parse_record` does; equal sides are an error."""
    extra = _own_fields(raw, _names(Pair), where)
    shared = _shared_fields(raw, where)
    chosen, rejected = (_side(raw, name, where) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError(f"{where}: chosen and rejected are equal; a pair must differ")
    split = _optional(raw, "split", where)
    rest: dict[str, Any] = {"split": split, "provenance": _provenance(raw, where), "extra": extra}
    return Pair(**shared, chosen=chosen, rejected=rejected, **rest)


def parse_plain(raw: dict[str, Any], *, where: str) -> Plain:
    """Return the text in `raw`, as `parse_record` does."""
    extra = _own_fields(raw, _names(Plain), where)
    response = _optional(raw, "response", where)
    provenance = _provenance(raw, where)
    shared = _shared_fields(raw, where, text="text")
    return Plain(**shared, response=response, provenance=provenance, extra=extra)


def parse_item(raw: dict[str, Any], *, where: str) -> Item:
    """Return a pair if there is a chosen side, a text if there is one, or else a record."""
    if "chosen" in raw or "rejected" in raw:
        return parse_pair(raw, where=where)
    if "text" in raw and "prompt" not in raw:
        return parse_plain(raw, where=where)
    return parse_record(raw, where=where)


def require_text(value: object, name: str, where: str) -> str:
    """Return the text without white space around it.

    Raises:
        DataError: if it is not text, empty, or holds a lone surrogate.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{where}: {name} must be non-empty text, got {_shortened(value)}; correct the line"
        )
    if _SURROGATE.search(value):
        raise DataError(
            f"{where}: {name} holds a lone surrogate, which is not text; correct the line"
        )
    return value.strip()


def parse_language(raw: dict[str, Any], text: str, where: str) -> str:
    """Return the `language` field, or the text's own language without one."""
    language = raw.get("language", detect_language(text))
    if language not in LANGUAGES:
        raise DataError(
            f"{where}: language must be one of {', '.join(LANGUAGES)}, got {_shortened(language)}"
        )
    return language


def check_unique(items: Iterable[Record | Pair], where: object) -> None:
    """Check that no id stands twice.

    Raises:
        DataError: if one does.
    """
    counts = Counter(item.id for item in items)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise DataError(
            f"{where}: the id {repeated[0]!r} is used more than once; give every record its own"
        )


def read_jsonl(
    path: Path, parse: Callable[..., T], *, skip_bad: bool = False, name: str | None = None
) -> tuple[list[T], list[Rejected]]:
    """Return what `parse(raw, where=…)` makes of each line, and with `skip_bad` the bad lines.

    Args:
        path: a JSON Lines file; blank lines are passed over.
        parse: raises DataError for what it cannot use.
        skip_bad: set bad lines aside instead of raising.
        name: how messages call the file; its path by default.

    Raises:
        DataError: if the file cannot be read, holds no record, or (without skip_bad) a line is bad.
    """
    shown = name or str(path)
    good: list[T] = []
    bad: list[Rejected] = []
    for where, line in json_lines(path, shown):
        try:
            good.append(parse(parse_object(line, where), where=where))
        except DataError as error:
            if not skip_bad:
                remedy = " (or pass --skip-bad to leave such lines out)"
                raise DataError(f"{error}{remedy}") from error
            bad.append(Rejected(where, str(error).removeprefix(f"{where}: "), {"line": line or ""}))
    if not good:
        raise DataError(f"{shown}: holds no usable record; give a file with one JSON object a line")
    return good, bad


def write_jsonl(path: Path, items: Iterable[_Row | dict[str, Any]]) -> None:
    """Write one JSON object a line; the artifact that holds the file makes it durable."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for item in items:
            row = item if isinstance(item, dict) else item.to_json()
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return what `write_jsonl` wrote. Of bytes: the lines of a text end at U+2028, too."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@functools.cache
def _names(kind: type[Record | Pair | Plain | Side | Provenance]) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind)) - {"extra"}


def _own_fields(raw: dict[str, Any], known: Set[str], where: str) -> dict[str, Any]:
    """Return the fields of the user's own; one that looks like ours, misspelt, is an error."""
    own = {name: value for name, value in raw.items() if name not in known}
    for name in sorted(own):
        if near := _misspelt(name, frozenset(known - raw.keys())):
            raise DataError(f"{where}: {name!r} is not a field; did you mean {near[0]!r}?")
    return own


@functools.lru_cache(1024)
def _misspelt(name: str, fields: frozenset[str]) -> list[str]:
    return difflib.get_close_matches(name, sorted(fields), n=1, cutoff=0.8)


def _provenance(raw: dict[str, Any], where: str) -> Provenance | None:
    given = raw.get("provenance")
    if given is None:
        return None
    try:
        return _PROVENANCE.validate_python(given)
    except ValidationError as error:
        place = ".".join(["provenance", *map(str, error.errors()[0]["loc"])])
        problem = error.errors()[0]["msg"]
        raise DataError(f"{where}: {place}: {problem}; correct or drop it") from error


def _shared_fields(raw: dict[str, Any], where: str, *, text: str = "prompt") -> dict[str, str]:
    words = _text(raw, text, where)
    return {
        "id": _text(raw, "id", where, default=where),
        text: words,
        "language": parse_language(raw, words, where),
        "domain": _text(raw, "domain", where, default="general"),
        "source": _text(raw, "source", where, default="user"),
    }


def _text(raw: dict[str, Any], name: str, where: str, *, default: str | None = None) -> str:
    return require_text(raw.get(name, default), name, where)


def _optional(raw: dict[str, Any], name: str, where: str) -> str | None:
    return None if raw.get(name) is None else _text(raw, name, where)


def _side(raw: dict[str, Any], name: str, where: str) -> Side:
    side = raw.get(name)
    if not isinstance(side, dict):
        raise DataError(
            f"{where}: {name} must be an object with decision, thinking and final, "
            f"got {_shortened(side)}"
        )
    where = f"{where}: {name}"
    _own_fields(side, {*_names(Side), "final"}, where)
    decision = parse_decision(side.get("decision"), where=where)
    return Side(decision, _thinking(side, decision, where))


def _thinking(raw: dict[str, Any], decision: Decision, where: str) -> Thinking:
    thinking = Thinking.from_bodies(raw.get("thinking", {}), raw.get("final"), where=where)
    require_consistent(decision, thinking, where=where)
    return thinking


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
