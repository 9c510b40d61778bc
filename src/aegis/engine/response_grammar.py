"""A response as it grows, token by token: what may come next, and when a section is over. No model
is needed for it."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aegis.model.tags import Tags, verdict_ids
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import SECTIONS, VERDICT_SECTION, Thinking, looks_like_a_tag

_NOTHING = "…"  # stands for a body in which the model wrote nothing visible
_TORN = "\ufffd"  # what a decoder gives for bytes that are no character (yet)


@dataclass(frozen=True)
class Limits:
    """How many tokens a private section and the public answer may have; the engine closes what
    reaches its limit."""

    section: int = 24
    final: int = 48

    def of(self, part: int) -> int:
        return self.final if part == len(SECTIONS) else self.section

    @property
    def total(self) -> int:
        """The longest response, tags included."""
        return len(SECTIONS) * (self.section + 2) + self.final + 2


@dataclass(frozen=True)
class SampledResponse:
    """One response.

    Args:
        prompt: ids of the prompt.
        ids: ids of the response, from the first opening tag to the last closing tag.
        chosen: which of the ids the model chose; the rest were written by the engine.
        part: which body each id belongs to: 0 to 3 the private sections, 4 the public answer.
        may_close: for each id, whether the closing tag could have been chosen there.
        closed: for each of the five bodies, whether the model closed it itself.
        bodies: their texts.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...] = field(repr=False)
    chosen: tuple[bool, ...] = field(repr=False)
    part: tuple[int, ...] = field(repr=False)
    may_close: tuple[bool, ...] = field(repr=False)
    closed: tuple[bool, ...]
    bodies: tuple[str, ...] = field(repr=False)

    def thinking(self) -> Thinking:
        """The response by sections.

        Raises:
            DataError: if a body is empty, which only a limit of a token or two can bring about.
        """
        return Thinking.from_bodies(
            dict(zip(SECTIONS, self.bodies[:-1], strict=True)), self.bodies[-1], where="response"
        )


@dataclass(repr=False)
class PartialResponse:
    """A response while it is written; `path` is what it came to. `rng` and `number` are for who
    samples it.

    Args:
        verdict: ids of the line that the policy section begins with. Its limit counts them, too,
            and a token of its own is left in any case.
        told: how many of them are written.
    """

    prompt: tuple[int, ...]
    limits: Limits = Limits()
    temperature: float = 1.0
    rng: random.Random | None = None
    number: int = 0
    verdict: tuple[int, ...] = ()
    told: int = 0
    part: int = 0
    body: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    may_close: list[bool] = field(default_factory=list)
    closed: list[bool] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)

    def add(self, token: int, *, chosen: bool, may_close: bool = False) -> None:
        self.ids.append(token)
        self.chosen.append(chosen)
        self.parts.append(self.part)
        self.may_close.append(may_close)

    @property
    def room(self) -> int:
        """How many tokens the body may still take."""
        return (
            self.limits.of(self.part)
            - len(self.body)
            - (self.told if self.part == VERDICT_SECTION else 0)
        )

    @property
    def whole(self) -> bool:
        """All bodies are closed."""
        return len(self.bodies) == len(SECTIONS) + 1

    def path(self) -> SampledResponse:
        rows = (self.ids, self.chosen, self.parts, self.may_close, self.closed, self.bodies)
        return SampledResponse(self.prompt, *map(tuple, rows))  # pyright: ignore[reportArgumentType]


class ResponseGrammar:
    """The rules by which a response grows: the engine writes the tags and what was decided, the
    model the bodies.

    Args:
        tokenizer: the model's, with the tags.
        tags: their ids.
    """

    def __init__(self, tokenizer: Any, tags: Tags) -> None:
        self.tokenizer, self.tags = tokenizer, tags
        self.verdicts = {decision: verdict_ids(tokenizer, decision) for decision in Decision}

    def begin(self, row: PartialResponse) -> int:
        """Write the first opening tag; return it, the first input behind the prompt."""
        opening = self.tags.pairs[0][0]
        row.add(opening, chosen=False)
        return opening

    def advance(self, row: PartialResponse, token: int | None) -> int | None:
        """Append what comes next and return it, the next input; None when the response is whole."""
        opening, closing = self.tags.pairs[row.part]
        if token is None and self._between(row):
            row.add(opening, chosen=False)
            return opening
        if token is None and self._telling(row):
            row.add(row.verdict[row.told], chosen=False)
            row.told += 1
            return row.ids[-1]
        if token is None:
            row.add(closing, chosen=False)
            return self._close(row, by_model=False)
        may_close = self.may_close(row)
        if token == closing:
            row.add(closing, chosen=True, may_close=may_close)
            return self._close(row, by_model=True)
        if looks_like_a_tag(
            self._text([*row.body, token])
        ):  # spelled out in ordinary tokens: the body ends before it
            row.add(closing, chosen=False)
            return self._close(row, by_model=False)
        row.body.append(token)
        row.add(token, chosen=True, may_close=may_close)
        return token

    def _close(self, row: PartialResponse, *, by_model: bool) -> int | None:
        row.closed.append(by_model)
        text = self.text(row.body)
        row.bodies.append(text if any(map(_visible, text)) else _NOTHING)
        row.body = []
        row.part += 1
        return None if row.part == len(self.tags.pairs) else row.ids[-1]

    def _between(self, row: PartialResponse) -> bool:
        """The last token closed a part: an opening tag comes next."""
        return bool(row.ids) and row.parts[-1] < row.part

    def _telling(self, row: PartialResponse) -> bool:
        """The policy section is open, and not all of what was decided is written."""
        return row.part == VERDICT_SECTION and row.told < min(
            len(row.verdict), row.limits.section - 1
        )

    def forced(self, row: PartialResponse) -> bool:
        """The engine writes the next token, whatever the model says: a tag, or what was decided."""
        return self._between(row) or self._telling(row) or row.room <= 0

    def may_close(self, row: PartialResponse) -> bool:
        """A visible character is there, and none is torn between two tokens."""
        text = self._text(row.body) if row.body else ""
        return not text.endswith(_TORN) and any(_visible(character) for character in text)

    def text(self, ids: Sequence[int]) -> str:
        """What a body of these tokens says, without a character torn at its end."""
        return self._text(ids).rstrip(_TORN).strip()

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def _visible(character: str) -> bool:
    return character != _TORN and unicodedata.category(character) not in (
        "Cf",
        "Cc",
        "Zs",
        "Zl",
        "Zp",
    )
