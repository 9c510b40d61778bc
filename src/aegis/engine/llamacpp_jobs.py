"""What is asked of llama.cpp, as jobs of a batcher: read a prompt, weigh continuations, write a
response."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from scipy.special import log_softmax

from aegis.engine.llamacpp import GgufModel
from aegis.engine.protocol import ThinkingRequest
from aegis.engine.response_grammar import PartialResponse, ResponseGrammar
from aegis.errors import AegisError


class SequenceJob:
    """A sequence to read. It takes what each step gives for its tokens and says what comes next.

    Attributes:
        ids: what is read first; at least one token.
        future: gets what the job comes to.
        most_tokens: how long the sequence may become.
        every_output: the outputs of all tokens are needed, not only of the last one to be read.
        cut_to: how many tokens of the sequence stay when all is read and more is to come; None for
            all of them.
        cancelled: once true, the future gets None and the job is dropped.
        sequence, position, pending: the batcher's: where it is read, how far, and what is left.
    """

    def __init__(self, ids: list[int], *, most_tokens: int, every_output: bool = False) -> None:
        self.ids, self.most_tokens, self.every_output = ids, most_tokens, every_output
        self.future: Future[Any] = Future()
        self.cut_to: int | None = None
        self.cancelled: Callable[[], bool] = lambda: False
        self.sequence = self.position = 0
        self.pending: list[int] = []

    def skip(self, hidden_sum: np.ndarray) -> None:
        """Go without what `ids` begin with: it was read before, and `hidden_sum` is the sum of its
        hidden states."""

    def take(self, model: GgufModel, indices: range, *, all_read: bool) -> list[int]:
        """Take what the model gives at these indices of the step; return what to read next.

        Nothing comes next when all is read: the future has its result then.
        """
        raise NotImplementedError


class ReadJob(SequenceJob):
    """A prompt to be read; comes to the pooled hidden state, (width,) float32.

    Args:
        pooling: as in `DecisionHead`.
    """

    def __init__(self, ids: list[int], pooling: str) -> None:
        super().__init__(ids, most_tokens=len(ids), every_output="mean" in pooling)
        self.pooling = pooling
        self._sum: Any = 0.0

    def skip(self, hidden_sum: np.ndarray) -> None:
        self._sum = hidden_sum

    def take(self, model: GgufModel, indices: range, *, all_read: bool) -> list[int]:
        states = model.hidden(indices if self.every_output else indices[-1:])
        self._sum = self._sum + states.sum(0, dtype=np.float64)
        if all_read:
            parts = {"last": states[-1], "mean": self._sum / len(self.ids)}
            pooled = np.concatenate([parts[part] for part in self.pooling.split("+")])
            self.future.set_result(pooled.astype(np.float32))
        return []


class DecideJob(SequenceJob):
    """A prompt to be read; comes to the (tokens,) float32 logits of some tokens behind it."""

    def __init__(self, ids: list[int], tokens: Sequence[int]) -> None:
        super().__init__(ids, most_tokens=len(ids))
        self.tokens = list(tokens)

    def take(self, model: GgufModel, indices: range, *, all_read: bool) -> list[int]:
        self.future.set_result(model.logits(indices[-1:])[0, self.tokens])
        return []


class WeighJob(SequenceJob):
    """Continuations to be weighed, one after the other behind what they share; comes to the sums of
    their log-probabilities.

    Args:
        ids: what the continuations share.
        tails: the ids of each.
    """

    def __init__(self, ids: list[int], tails: list[list[int]]) -> None:
        super().__init__(ids, most_tokens=len(ids) + max(map(len, tails), default=0))
        self.tails, self.cut_to = tails, len(ids)
        self.scores = [0.0] * len(tails)
        self._current = -1  # the shared beginning is read first
        self._weighed = 0

    def take(self, model: GgufModel, indices: range, *, all_read: bool) -> list[int]:
        if self._current < 0:
            first = log_softmax(model.logits(indices[-1:])[0])
            self.scores = [float(first[tail[0]]) if tail else 0.0 for tail in self.tails]
            self.every_output = True
        else:
            following = self.tails[self._current][self._weighed + 1 :][: len(indices)]
            chances = log_softmax(model.logits(indices), axis=1)[range(len(following)), following]
            self.scores[self._current] += float(chances.sum())
            self._weighed += len(indices)
        if not all_read:
            return []
        self._weighed = 0
        for number in range(self._current + 1, len(self.tails)):
            if len(self.tails[number]) > 1:  # of a single token the chance is known already
                self._current = number
                return self.tails[number][:-1]
        self.future.set_result(self.scores)
        return []


class WriteJob(SequenceJob):
    """A response to be written; comes to a `SampledResponse`.

    Args:
        ids: of the prompt.
        banned: tokens that a body never holds, the closing tags among them.
    """

    def __init__(
        self,
        ids: list[int],
        request: ThinkingRequest,
        grammar: ResponseGrammar,
        banned: frozenset[int],
    ) -> None:
        verdict, self.sampling = grammar.verdicts[request.decision], request.sampling
        lead = grammar.tags.lead(request.decision)
        self.row = PartialResponse(tuple(ids), self.sampling, verdict, lead=lead)
        super().__init__(
            [*ids, *grammar.begin(self.row)], most_tokens=len(ids) + self.sampling.limits.total
        )
        self.grammar, self.banned, self.cancelled = grammar, banned, request.cancelled
        self._samplers: dict[int | None, Any] = {}

    def take(self, model: GgufModel, indices: range, *, all_read: bool) -> list[int]:
        """Return the token chosen, and the tags behind it if it ends a section."""
        tokens: list[int] = []
        token = self.grammar.advance(self.row, self._choose(model, indices[-1]))
        while token is not None:
            tokens.append(token)
            if not self.grammar.forced(self.row):
                return tokens
            token = self.grammar.advance(self.row, None)
        self.future.set_result(self.row.finish())
        return []

    def _choose(self, model: GgufModel, index: int) -> int | None:
        grammar, row = self.grammar, self.row
        if grammar.forced(row):
            return None
        closing = grammar.tags.pairs[row.part][1] if grammar.may_close(row) else None
        if closing not in self._samplers:
            self._samplers[closing] = model.sampler(
                sorted(self.banned - {closing}),
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                seed=_mixed(self.sampling.seed, row.part if closing is not None else None),
            )
        token = model.pick(self._samplers[closing], index)
        if token != closing and token in self.banned:
            raise AegisError(
                f"{model.file.name} gives logits that are not finite; "
                "export the model in another type"
            )
        return token


def _mixed(seed: int, part: int | None) -> int:
    """Make a seed for each of a response's samplers; 2³² - 1 would mean a random one to
    llama.cpp."""
    digest = hashlib.blake2b(f"{seed}:{part}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (2**32 - 1)
