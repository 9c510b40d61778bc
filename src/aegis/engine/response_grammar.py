"""A response as it grows, token by token: what may come next, and when a section is over. No model
is needed for it."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aegis.errors import DataError
from aegis.model.tags import Tags, verdict_ids
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import SECTIONS, VERDICT_SECTION, Thinking, looks_like_a_tag

_EMPTY_BODY = "…"  # stands for a body in which the model wrote nothing visible
_TORN = "\ufffd"  # what a decoder gives for bytes that are no character (yet)


@dataclass(frozen=True)
class Limits:
    """How many tokens a private section and the public answer may have; the engine closes what
    reaches its limit."""

    section: int = 48
    final: int = 160

    def of(self, part: int) -> int:
        return self.final if part == len(SECTIONS) else self.section

    @property
    def total(self) -> int:
        """The longest response, tags included. One that begins with its decision's token is longer
        by it; but its last tag is never read."""
        return len(SECTIONS) * (self.section + 2) + self.final + 2


@dataclass(frozen=True)
class Sampling:
    """How a response is drawn.

    Args:
        temperature: 0 takes the most probable token.
        seed: a response's draws are its own: what is sampled beside it changes none of them.
        top_p: only the most probable tokens are drawn, as many as come to this chance together.
    """

    limits: Limits = Limits()
    temperature: float = 0.7
    seed: int = 0
    top_p: float = 1.0


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
        """Return the response by sections.

        Raises:
            DataError: if a body is empty, which only a limit of a token or two can bring about.
        """
        return Thinking.from_bodies(
            dict(zip(SECTIONS, self.bodies[:-1], strict=True)), self.bodies[-1], where="response"
        )

    def usable_thinking(self) -> Thinking | None:
        """Return the response by sections; None if a body is empty."""
        try:
            return self.thinking()
        except DataError:
            return None


@dataclass(repr=False)
class PartialResponse:
    """A response while it is written.

    Args:
        lead: ids that stand before the first tag: the decision's, where it is a token.
        verdict: ids of the line that the policy section begins with. Its limit counts them, too,
            and a token of its own is left in any case.
        rng: where its draws come from; None where all rows draw from one generator.
        verdict_written: how many of the verdict's ids are written.
        part: the body that is being written.
        parts: which body each of `ids` belongs to; the other lists as in `SampledResponse`.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = Sampling()
    verdict: tuple[int, ...] = ()
    rng: random.Random | None = None
    lead: tuple[int, ...] = ()
    verdict_written: int = 0
    part: int = 0
    body: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    may_close: list[bool] = field(default_factory=list)
    closed: list[bool] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)

    def add(self, token: int, *, chosen: bool, may_close: bool = False) -> int:
        """Append a token and return it."""
        self.ids.append(token)
        self.chosen.append(chosen)
        self.parts.append(self.part)
        self.may_close.append(may_close)
        return token

    @property
    def room(self) -> int:
        """How many tokens the body may still take."""
        used = self.verdict_written if self.part == VERDICT_SECTION else 0
        return self.sampling.limits.of(self.part) - len(self.body) - used

    @property
    def whole(self) -> bool:
        """All bodies are closed."""
        return len(self.bodies) == len(SECTIONS) + 1

    @property
    def awaits_opening(self) -> bool:
        """The last token closed a body: an opening tag comes next."""
        return bool(self.ids) and self.parts[-1] < self.part

    @property
    def awaits_verdict(self) -> bool:
        """The policy section is open, and not all of what was decided is written."""
        end = min(len(self.verdict), self.sampling.limits.section - 1)
        return self.part == VERDICT_SECTION and self.verdict_written < end

    def finish(self) -> SampledResponse:
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

    def begin(self, row: PartialResponse) -> list[int]:
        """Write what leads and the first opening tag; return them, the first input behind the
        prompt."""
        return [row.add(token, chosen=False) for token in (*row.lead, self.tags.pairs[0][0])]

    def advance(self, row: PartialResponse, token: int | None) -> int | None:
        """Append what comes next and return it, the next input; None when the response is whole.

        Args:
            token: what the model chose; None where the engine writes.
        """
        opening, closing = self.tags.pairs[row.part]
        if token is None and row.awaits_opening:
            return row.add(opening, chosen=False)
        if token is None and row.awaits_verdict:
            row.verdict_written += 1
            return row.add(row.verdict[row.verdict_written - 1], chosen=False)
        if token is None:
            return self._close(row)
        may_close = self.may_close(row)
        if token == closing:
            return self._close(row, by_model=True, may_close=may_close)
        if looks_like_a_tag(self._text([*row.body, token])):
            return self._close(row)  # spelled out in ordinary tokens: the body ends before it
        row.body.append(token)
        return row.add(token, chosen=True, may_close=may_close)

    def _close(
        self, row: PartialResponse, *, by_model: bool = False, may_close: bool = False
    ) -> int | None:
        row.add(self.tags.pairs[row.part][1], chosen=by_model, may_close=may_close)
        row.closed.append(by_model)
        text = self.text(row.body)
        row.bodies.append(text if any(map(_visible, text)) else _EMPTY_BODY)
        row.body = []
        row.part += 1
        return None if row.whole else row.ids[-1]

    def forced(self, row: PartialResponse) -> bool:
        """Whether the engine writes the next token: a tag, or what was decided."""
        return row.awaits_opening or row.awaits_verdict or row.room <= 0

    def may_close(self, row: PartialResponse) -> bool:
        """Whether a visible character is there, and none is torn between two tokens."""
        text = self._text(row.body) if row.body else ""
        return not text.endswith(_TORN) and any(map(_visible, text))

    def text(self, ids: Sequence[int]) -> str:
        """Return what a body of these tokens says, without a character torn at its end."""
        return self._text(ids).rstrip(_TORN).strip()

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def _visible(character: str) -> bool:
    invisible = ("Cf", "Cc", "Zs", "Zl", "Zp")
    return character != _TORN and unicodedata.category(character) not in invisible
