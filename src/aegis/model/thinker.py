"""Sample responses in the protocol's form: the engine writes the tags, the model the bodies, so the form cannot break."""

from __future__ import annotations

import contextlib
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from aegis.errors import DataError
from aegis.model.prompt import pad
from aegis.model.tags import Tags
from aegis.thinking import SECTIONS, Thinking, looks_like_a_tag

_NOTHING = "…"  # stands for a body in which the model wrote nothing visible
_TORN = "\ufffd"  # what a decoder gives for bytes that are no character (yet)


@dataclass(frozen=True)
class Limits:
    """How many tokens a private section and the public answer may have; the engine closes what reaches its limit."""

    section: int = 24
    final: int = 48

    def of(self, part: int) -> int:
        return self.final if part == len(SECTIONS) else self.section

    @property
    def total(self) -> int:
        """The longest response, tags included."""
        return len(SECTIONS) * (self.section + 2) + self.final + 2


@dataclass(frozen=True)
class Path:
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
        return Thinking.from_bodies(dict(zip(SECTIONS, self.bodies[:-1], strict=True)), self.bodies[-1], where="response")


@dataclass(frozen=True)
class Wanted:
    """One response to sample among others that differ from it.

    Args:
        prompt: ids of the prompt.
        temperature: 0 takes the most probable token.
        seed: the row draws from a generator of its own, so that the company it is sampled in changes no draw.
    """

    prompt: tuple[int, ...]
    limits: Limits
    temperature: float
    seed: int


@dataclass(repr=False)
class _Row:
    prompt: tuple[int, ...]
    limits: Limits = Limits()
    temperature: float = 1.0
    rng: random.Random | None = None
    number: int = 0
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
    def whole(self) -> bool:
        return len(self.bodies) == len(SECTIONS) + 1

    def path(self) -> Path:
        rows = (self.ids, self.chosen, self.parts, self.may_close, self.closed, self.bodies)
        return Path(self.prompt, *map(tuple, rows))  # pyright: ignore[reportArgumentType]


class Thinker:
    """Samples responses, a batch at a time, each row at its own place in the protocol.

    Args:
        model: a transformers causal language model, adapted or folded.
        tokenizer: its tokenizer, with the tags.
        tags: their ids.
    """

    def __init__(self, model: Any, tokenizer: Any, tags: Tags, limits: Limits) -> None:
        self.model, self.tokenizer, self.tags, self.limits = model, tokenizer, tags, limits
        self.allowed = allowed_tokens(tokenizer, width=model.get_output_embeddings().weight.shape[0]).to(model.device)

    @torch.inference_mode()
    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        on_token: Callable[[], None] = lambda: None,
    ) -> list[Path]:
        """One response a prompt, in their order.

        Args:
            temperature: 0 takes the most probable token.
            on_token: called after each step; it may raise to stop.
        """
        rows = [_Row(tuple(prompt), self.limits, temperature) for prompt in prompts]
        self._sample(rows, generator=generator, on_token=on_token)
        return [row.path() for row in rows]

    @torch.inference_mode()
    def each(
        self,
        wanted: Sequence[Wanted],
        *,
        on_path: Callable[[int, Path], None],
        dropped: Callable[[int], bool] = lambda _: False,
        on_token: Callable[[], None] = lambda: None,
    ) -> None:
        """Sample responses that differ in limits, temperature and seed; each is handed over as soon as it is whole.

        Args:
            on_path: gets the index of what was wanted, and its response.
            dropped: asked between steps; a row for which it is true goes no further and is never handed over.
        """
        rows = [
            _Row(tuple(one.prompt), one.limits, one.temperature, random.Random(one.seed), number)
            for number, one in enumerate(wanted)
        ]
        self._sample(
            rows,
            on_token=on_token,
            on_path=lambda row: on_path(row.number, row.path()),
            dropped=lambda row: dropped(row.number),
        )

    def _sample(
        self,
        rows: Sequence[_Row],
        *,
        generator: torch.Generator | None = None,
        on_token: Callable[[], None],
        on_path: Callable[[_Row], None] = lambda _: None,
        dropped: Callable[[_Row], bool] = lambda _: False,
    ) -> None:
        """Write the rows until every one is whole or dropped."""
        for row in rows:
            row.add(self.tags.pairs[0][0], chosen=False)
        ids, mask = pad([[*row.prompt, row.ids[0]] for row in rows], value=self.tokenizer.pad_token_id, left=True)
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        active, cache = list(rows), DynamicCache(config=self.model.config)
        while True:
            logits = self._logits(ids, mask, cache)
            chosen = self._choose(logits, active, generator)
            tokens = [self._advance(row, token) for row, token in zip(active, chosen, strict=True)]
            for row in active:
                if row.whole:
                    on_path(row)
            keep = [index for index, token in enumerate(tokens) if token is not None and not dropped(active[index])]
            if not keep:
                return
            if len(keep) < len(active):
                active = [active[index] for index in keep]
                kept = torch.tensor(keep, device=mask.device)
                cache.batch_select_indices(kept)
                mask = mask[kept]
            ids = torch.tensor([[tokens[index]] for index in keep], device=mask.device)
            mask = torch.cat([mask, mask.new_ones(len(keep), 1)], dim=1)
            on_token()

    def _logits(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def _choose(self, logits: Tensor, rows: Sequence[_Row], generator: torch.Generator | None) -> list[int | None]:
        """A token a row; None where the engine writes the next one."""
        free = [not self._forced(row) for row in rows]
        if not any(free):
            return [None] * len(rows)
        closing = torch.tensor([self.tags.pairs[row.part][1] for row in rows], device=logits.device)
        may = torch.tensor([self._may_close(row) for row in rows], device=logits.device)
        masked = restrict(logits.to(torch.float32, copy=True), self.allowed, closing, may)
        if rows[0].rng is not None:
            picked = _pick(masked, rows)
        elif rows[0].temperature == 0:
            picked = masked.argmax(-1)
        else:
            chances = torch.softmax(masked / rows[0].temperature, -1)
            picked = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        return [token if is_free else None for token, is_free in zip(picked.tolist(), free, strict=True)]

    def _advance(self, row: _Row, token: int | None) -> int | None:
        """Append what comes next and return it, the next input; None when the response is whole."""
        opening, closing = self.tags.pairs[row.part]
        if token is None and self._between(row):
            row.add(opening, chosen=False)
            return opening
        if token is None:
            row.add(closing, chosen=False)
            return self._close(row, by_model=False)
        may_close = self._may_close(row)
        if token == closing:
            row.add(closing, chosen=True, may_close=may_close)
            return self._close(row, by_model=True)
        if looks_like_a_tag(self._text([*row.body, token])):  # spelled out in ordinary tokens: the body ends before it
            row.add(closing, chosen=False)
            return self._close(row, by_model=False)
        row.body.append(token)
        row.add(token, chosen=True, may_close=may_close)
        return token

    def _close(self, row: _Row, *, by_model: bool) -> int | None:
        row.closed.append(by_model)
        text = self._text(row.body).rstrip(_TORN).strip()
        row.bodies.append(text if any(map(_visible, text)) else _NOTHING)
        row.body = []
        row.part += 1
        return None if row.part == len(self.tags.pairs) else row.ids[-1]

    def _between(self, row: _Row) -> bool:
        """The last token closed a part: an opening tag comes next."""
        return bool(row.ids) and row.parts[-1] < row.part

    def _forced(self, row: _Row) -> bool:
        return self._between(row) or len(row.body) >= row.limits.of(row.part)

    def _may_close(self, row: _Row) -> bool:
        """A visible character is there, and none is torn between two tokens."""
        text = self._text(row.body) if row.body else ""
        return not text.endswith(_TORN) and any(_visible(character) for character in text)

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def _pick(logits: Tensor, rows: Sequence[_Row]) -> Tensor:
    """(n,) a token a row, at its own temperature, by one draw from its own generator, through the cumulated chances."""
    best = logits.argmax(-1)
    if all(row.temperature == 0 for row in rows):
        return best
    temperatures = torch.tensor([row.temperature or 1.0 for row in rows], device=logits.device)
    cumulated = torch.softmax(logits / temperatures[:, None], -1).cumsum(-1)
    draws = torch.tensor([1 - row.rng.random() if row.rng else 1.0 for row in rows], device=logits.device)  # in (0, 1]
    # The first place that reaches the draw has a chance of its own, so that what may not follow is never drawn.
    drawn = torch.searchsorted(cumulated, (draws * cumulated[:, -1])[:, None]).squeeze(1)
    greedy = torch.tensor([row.temperature == 0 for row in rows], device=logits.device)
    return torch.where(greedy, best, drawn)


def _visible(character: str) -> bool:
    return character != _TORN and unicodedata.category(character) not in ("Cf", "Cc", "Zs", "Zl", "Zp")


def allowed_tokens(tokenizer: Any, *, width: int) -> Tensor:
    """(width,) bool: ordinary text tokens; neither markers nor rows that no token stands for."""
    allowed = torch.zeros(width, dtype=torch.bool)
    allowed[: len(tokenizer)] = True
    forbidden = [*tokenizer.all_special_ids, *(n for text, n in tokenizer.get_added_vocab().items() if text.strip())]
    allowed[torch.tensor(sorted(set(forbidden)))] = False
    return allowed


def restrict(logits: Tensor, allowed: Tensor, closing: Tensor, may_close: Tensor) -> Tensor:
    """(n, vocabulary) logits with −inf on what may not follow, changed in place: they are the largest tensors there are.

    Args:
        allowed: (vocabulary,) from `allowed_tokens`.
        closing: (n,) each row's own closing tag.
        may_close: (n,) whether it may be chosen.
    """
    present = closing.unique()
    possible = allowed.clone()
    possible[present] = True
    logits.masked_fill_(~possible, -torch.inf)
    for tag in present.tolist():
        logits[:, tag].masked_fill_((closing != tag) | ~may_close, -torch.inf)
    return logits


@contextlib.contextmanager
def steady(gates: Sequence[Any]) -> Iterator[None]:
    """While entered, no gate computes its rotation anew."""
    with contextlib.ExitStack() as stack:
        for gate in gates:
            stack.enter_context(gate.held())
        yield


def require_paths(paths: Sequence[Path]) -> list[Thinking | None]:
    """The responses by sections; None where a body is empty."""
    found: list[Thinking | None] = []
    for path in paths:
        try:
            found.append(path.thinking())
        except DataError:
            found.append(None)
    return found
