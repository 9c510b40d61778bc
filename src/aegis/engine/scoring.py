"""Weigh continuations of many contexts: what is read for them, in which batches, and who reads it.

All of an item's sequences share their first tokens (the trunk), read once for all; what they go on
with are branches. Rows that begin alike over many tokens share those too (the header), as the
examples in front of every question of a subject do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aegis.model.prompt import common_prefix

# A header is worth a pass of its own from so many tokens on; a row that begins with less than this
# share of it starts a new one.
_LEAST_HEADER, _LEAST_SHARE = 32, 0.25
BATCH_TOKENS, _CACHED_TOKENS = 1024, 16384


@dataclass(frozen=True)
class Continuation:
    """The token ids of a context, never empty, and those that are weighed behind it."""

    context: list[int]
    ids: list[int]


@dataclass(frozen=True)
class Score:
    """log P(continuation | context), and whether each of its tokens is the most probable one."""

    log_prob: float
    greedy: bool


@dataclass(frozen=True)
class Row:
    """An item's tokens: a trunk, and branches that go on from it and do not see one another.

    Args:
        targets: for each pair, the place behind which each of its tokens is predicted, and the
            token; places count the trunk's tokens first, then each branch's.
    """

    trunk: list[int]
    branches: list[list[int]]
    targets: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, pairs: Sequence[Continuation], context: int) -> Row:
        """Plan a row of pairs; what is longer than `context` loses its first tokens."""
        whole = [(pair.context + pair.ids)[-(context + 1) :] for pair in pairs]
        inputs = [ids[:-1] for ids in whole]
        trunk = common_prefix(inputs)
        branches, targets, place = [], [], len(trunk)
        for pair, ids, read in zip(pairs, whole, inputs, strict=True):
            branch, moved = read[len(trunk) :], place - len(trunk)
            branches.append(branch)
            place += len(branch)
            first = max(1, len(ids) - len(pair.ids))
            behind = [(at - 1, ids[at]) for at in range(first, len(ids))]
            targets.append([(at if at < len(trunk) else at + moved, t) for at, t in behind])
        return cls(trunk, branches, targets)

    @property
    def ids(self) -> list[int]:
        return [*self.trunk, *(token for branch in self.branches for token in branch)]

    def positions(self) -> np.ndarray:
        """(tokens,) positions in the sequences that the tokens are of."""
        begin = len(self.trunk)
        parts = [range(begin), *(range(begin, begin + len(branch)) for branch in self.branches)]
        return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])

    def segments(self) -> np.ndarray:
        """(tokens,) 0 in the trunk, and each branch's number from 1."""
        sizes = [len(self.trunk), *map(len, self.branches)]
        return np.repeat(np.arange(len(sizes)), sizes)

    @property
    def shareable(self) -> int:
        """How many of the first tokens nothing is predicted behind."""
        return min([len(self.trunk), *(places[0][0] for places in self.targets if places)])

    def chains(self) -> list[Row]:
        """Return a row for each pair, without branches."""
        rows = []
        moved = 0
        for branch, targets in zip(self.branches, self.targets, strict=True):
            size = len(self.trunk)
            places = [(at if at < size else at - moved, token) for at, token in targets]
            rows.append(Row([*self.trunk, *branch], [[]], [places]))
            moved += len(branch)
        return rows


@dataclass(frozen=True)
class RowBatch:
    """Rows to be read together, by their index, and how many first tokens all of them share."""

    header: list[int]
    members: list[int]


class Scorer(Protocol):
    """A model that weighs continuations and writes the most probable text.

    Args:
        context: the most tokens that it reads.
        prefix: the token that stands before a text without context.
    """

    context: int
    prefix: int

    def ids(self, text: str, *, special: bool | None = None) -> list[int]:
        """Return the text's token ids, with what the tokenizer adds by itself if `special`; by
        default if the text does not begin with it."""
        ...

    def score(self, batch: RowBatch, rows: Sequence[Row]) -> list[list[Score]]:
        """Return the scores of each of the batch's rows, which are `rows`, pair by pair."""
        ...

    def write(self, prompts: Sequence[list[int]], stops: Sequence[str], most: int) -> list[str]:
        """Go on from each prompt, at most `most` tokens, taking the most probable one; the text
        ends before the first of the stops."""
        ...

    def logits(self, ids: list[int], first: int) -> np.ndarray:
        """(tokens, vocabulary) float32 of a text read alone, from the token at `first` on."""
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


def encode_pair(scorer: Scorer, context: str, continuation: str) -> Continuation:
    """Encode as lm-evaluation-harness does: spaces that end the context go to the continuation, and
    both are encoded together, so that the continuation is what the context leaves over."""
    if not context:
        ids = scorer.ids(continuation, special=False)
        begun = ids[:1] == [scorer.prefix]
        return Continuation(ids[:1], ids[1:]) if begun else Continuation([scorer.prefix], ids)
    stripped = context.rstrip()
    whole = scorer.ids(context + continuation)
    known = scorer.ids(stripped)
    return Continuation(known, whole[len(known) :])


def deal(rows: Sequence[Row], *, batch_tokens: int = BATCH_TOKENS) -> list[RowBatch]:
    """Deal rows into batches that share a header, rows of like length together.

    The batches depend on the rows alone, so that every model with this tokenizer, and every
    resumption, reads the same ones.
    """
    batches = []
    for header, members in _alike(rows):
        sizes = {index: len(rows[index].ids) - len(header) for index in members}
        batch: list[int] = []
        for index in sorted(members, key=lambda index: sizes[index]):
            count, size = len(batch) + 1, sizes[index]
            full = count * size > batch_tokens or count * (len(header) + size) > _CACHED_TOKENS
            if batch and full:
                batches.append(RowBatch(header, batch))
                batch = []
            batch.append(index)
        batches.append(RowBatch(header, batch))
    return batches


def _alike(rows: Sequence[Row]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield runs of rows and what each run's rows begin with, empty where it is not worth it."""
    plain: list[int] = []
    run: list[int] = []
    header: list[int] = []
    for index, row in enumerate(rows):
        start = row.trunk[: row.shareable]
        both = common_prefix([header, start])
        if run and len(both) >= max(_LEAST_HEADER, _LEAST_SHARE * len(header)):
            header = both
            run.append(index)
            continue
        if len(run) > 1:
            yield header, run
        else:
            plain += run
        header, run = start, [index]
    if len(run) > 1:
        yield header, run
    else:
        plain += run
    if plain:
        yield [], plain


def cut(text: str, stops: Sequence[str]) -> str:
    """Return the text up to the first of the stops."""
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return text
