"""Continuous batching: one thread owns llama.cpp, and what many threads ask shares its steps,
joining and leaving at any."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aegis.engine.llama import Input, Llama
from aegis.engine.response_grammar import PartialResponse, ResponseGrammar, SampledResponse
from aegis.errors import AegisError

_PREFIX = 0  # the sequence that holds what all prompts begin with
_SHORT = 8  # a response goes on with few tokens at once: one of its own, or the tags between two sections and the verdict


@dataclass(repr=False, eq=False)
class Reading:
    """A prompt to be read; `future` gets the pooled hidden state, (width,) float32.

    Args:
        ids: the prompt.
        pooling: what of the hidden states is wanted, as in `DecisionHead`.
    """

    ids: list[int]
    pooling: str
    future: Future[np.ndarray] = field(default_factory=Future)
    total: Any = 0.0

    most_tokens = property(lambda self: len(self.ids))
    every_output = property(lambda self: "mean" in self.pooling)


@dataclass(repr=False, eq=False)
class Writing:
    """A response to be written; `future` gets its path, or None if `cancelled` became true
    first."""

    row: PartialResponse
    seed: int
    cancelled: Callable[[], bool]
    ids: list[int]
    future: Future[SampledResponse | None] = field(default_factory=Future)
    samplers: dict[int | None, Any] = field(default_factory=dict)

    most_tokens = property(lambda self: len(self.row.prompt) + self.row.limits.total)
    every_output = False


@dataclass(repr=False, eq=False)
class _Seat:
    """A job in a sequence of its own: what it has still to read, and where that stands."""

    job: Reading | Writing
    sequence: int
    position: int
    pending: list[int]


@dataclass(repr=False)
class _Lane:
    """Sequences and cells for one kind of job; what finds none waits in the queue, the oldest
    first."""

    free: list[int]
    cells: int
    queue: deque[Any] = field(default_factory=deque)


class Batcher:
    """Runs readings and writings until closed. Each has its own sequences, so that a decision never
    waits for a response.

    A step reads at most `llama.step` tokens: first what the responses go on with, then prompts, the
    oldest first, in pieces as large as fit.

    Args:
        llama: owned from here on, and closed at the end.
        writer: the rules of a response.
        banned: tokens that a body never holds, the closing tags among them.
        prefix: the ids that most prompts begin with; read once, shared by all that do.
        slots: responses at once.
        readers: prompts to be decided about at once.
        room: cells for responses and for decisions; `llama.cells` is the sum of both and the
            prefix, or more.
    """

    def __init__(
        self,
        llama: Llama,
        writer: ResponseGrammar,
        *,
        banned: Sequence[int],
        prefix: Sequence[int],
        slots: int,
        readers: int,
        room: tuple[int, int],
    ) -> None:
        self.llama, self.writer, self.banned, self.prefix = (
            llama,
            writer,
            frozenset(banned),
            list(prefix),
        )
        first = _PREFIX + 1
        self.writings = _Lane(list(range(first, first + slots)), room[0])
        self.readings = _Lane(list(range(first + slots, first + slots + readers)), room[1])
        self.steps = self.written = 0
        self._seats: list[_Seat] = []
        self._sums = np.zeros((1, llama.width))
        self._changed = threading.Condition()
        self._closed = False
        self._read_prefix()
        self._worker = threading.Thread(target=self._work, name="aegis-llama", daemon=True)
        self._worker.start()

    def ask(self, job: Reading | Writing) -> None:
        """Put the job in its queue.

        Raises:
            AegisError: if the engine is closed.
        """
        with self._changed:
            if self._closed:
                raise AegisError("the engine is closed; start the server again")
            self._lane(job).queue.append(job)
            self._changed.notify_all()

    def close(self) -> None:
        """The thread has ended; what was not finished has been told so."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join()

    def _work(self) -> None:
        try:
            while self._wait():
                self._drop()
                self._admit()
                try:
                    self._step()
                except (
                    Exception
                ) as error:  # llama.cpp gave up: what was in its hands is lost, what waits goes on
                    self._fail(error)
                    self._read_prefix()
        finally:
            self._end()

    def _wait(self) -> bool:
        """There is something to do; False once closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._seats or self.readings.queue or self.writings.queue
            )
            return not self._closed

    def _drop(self) -> None:
        """Free the seats of responses that nobody waits for any more, and take such responses out
        of the queue."""
        for seat in [
            seat for seat in self._seats if isinstance(seat.job, Writing) and _given_up(seat.job)
        ]:
            self._leave(seat)
        with self._changed:
            waiting = list(self.writings.queue)
        for job in [job for job in waiting if _given_up(job)]:
            self.writings.queue.remove(job)

    def _admit(self) -> None:
        for lane in (self.readings, self.writings):
            while lane.queue and lane.free and lane.queue[0].most_tokens <= lane.cells:
                job = lane.queue.popleft()
                shared = common(
                    self.prefix, job.ids[:-1]
                )  # one token at least is to be read: it has the output
                sequence = lane.free.pop()
                lane.cells -= job.most_tokens
                if shared:
                    self.llama.share(_PREFIX, sequence, tokens=shared)
                if isinstance(job, Reading):
                    job.total = self._sums[shared]
                self._seats.append(_Seat(job, sequence, shared, job.ids[shared:]))

    def _step(self) -> None:
        inputs: list[Input] = []
        parts: list[tuple[_Seat, range]] = []
        for seat in sorted(self._seats, key=lambda seat: len(seat.pending) > _SHORT):
            piece = seat.pending[: self.llama.step - len(inputs)]
            if not piece:
                continue
            parts.append((seat, range(len(inputs), len(inputs) + len(piece))))
            inputs.extend(self._inputs(seat, piece))
            del seat.pending[: len(piece)]
        if not inputs:
            return
        self.llama.read(inputs)
        self.steps += 1
        for seat, indices in parts:
            seat.position += len(indices)
            try:
                self._take(seat, indices)
            except Exception as error:  # this job's alone; the others go on
                self._lose(seat, error)

    def _inputs(self, seat: _Seat, piece: list[int]) -> Iterator[Input]:
        last = len(piece) - 1 if len(piece) == len(seat.pending) else None
        for place, token in enumerate(piece):
            output = seat.job.every_output or place == last
            yield Input(token, seat.position + place, seat.sequence, output)

    def _take(self, seat: _Seat, indices: range) -> None:
        """Hand the job what the step found at its tokens; a job that is done leaves."""
        job = seat.job
        if isinstance(job, Reading):
            if job.every_output:
                job.total = job.total + self.llama.hidden(indices).sum(0, dtype=np.float64)
            if not seat.pending:
                _tell(job.future, self._pooled(job, indices[-1]))
                self._leave(seat)
        elif not seat.pending:
            seat.pending = self._go_on(job, indices[-1])
            if not seat.pending:
                self.written += len(job.row.ids)
                _tell(job.future, job.row.path())
                self._leave(seat)

    def _pooled(self, job: Reading, index: int) -> np.ndarray:
        parts = {
            "last": lambda: self.llama.hidden([index])[0],
            "mean": lambda: job.total / len(job.ids),
        }
        return np.concatenate([parts[part]() for part in job.pooling.split("+")]).astype(np.float32)

    def _go_on(self, job: Writing, index: int) -> list[int]:
        """What the response goes on with: the token chosen, and the tags behind it if it ends a
        section."""
        writer, row, tokens = self.writer, job.row, []
        token = writer.advance(row, self._choose(job, index))
        while token is not None:
            tokens.append(token)
            if not writer.forced(row):
                return tokens
            token = writer.advance(row, None)
        return []

    def _choose(self, job: Writing, index: int) -> int | None:
        writer, row = self.writer, job.row
        if writer.forced(row):
            return None
        closing = writer.tags.pairs[row.part][1] if writer.may_close(row) else None
        if closing not in job.samplers:
            banned = sorted(self.banned - {closing})
            seed = _mixed(job.seed, row.part if closing is not None else None)
            job.samplers[closing] = self.llama.sampler(
                banned, temperature=row.temperature, seed=seed
            )
        token = self.llama.pick(job.samplers[closing], index)
        if token != closing and token in self.banned:
            raise AegisError(
                f"{self.llama.file.name} gives logits that are not finite; export the model in another type"
            )
        return token

    def _leave(self, seat: _Seat) -> None:
        self._seats.remove(seat)
        self.llama.forget(seat.sequence)
        lane = self._lane(seat.job)
        lane.free.append(seat.sequence)
        lane.cells += seat.job.most_tokens

    def _lose(self, seat: _Seat, error: Exception) -> None:
        _tell(seat.job.future, error=error)
        self._leave(seat)

    def _fail(self, error: Exception) -> None:
        told = (
            error
            if isinstance(error, AegisError)
            else AegisError(f"llama.cpp gave up ({error}); ask again")
        )
        for seat in list(self._seats):
            self._lose(seat, told)
        self.llama.clear()

    def _read_prefix(self) -> None:
        """Read what most prompts begin with, and sum its hidden states up to every token."""
        found = [np.zeros((1, self.llama.width), dtype=np.float32)]
        for start in range(0, len(self.prefix), self.llama.step):
            piece = self.prefix[start : start + self.llama.step]
            self.llama.read(
                Input(token, start + place, _PREFIX, True) for place, token in enumerate(piece)
            )
            found.append(self.llama.hidden(range(len(piece))))
        self._sums = np.concatenate(found).cumsum(0, dtype=np.float64)

    def _end(self) -> None:
        with self._changed:
            self._closed = True
        waiting = [seat.job for seat in self._seats] + [*self.readings.queue, *self.writings.queue]
        for job in waiting:
            _tell(job.future, error=AegisError("the engine is closed; start the server again"))
        self.llama.close()

    def _lane(self, job: Reading | Writing) -> _Lane:
        return self.readings if isinstance(job, Reading) else self.writings


def _given_up(job: Writing) -> bool:
    try:
        if not job.cancelled():
            return False
    except Exception as error:  # whoever asked decides what an error means
        _tell(job.future, error=error)
    else:
        _tell(job.future, None)
    return True


def _tell(future: Future[Any], value: Any = None, *, error: Exception | None = None) -> None:
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _mixed(seed: int, part: int | None) -> int:
    """A seed of its own for each of a response's samplers; 2³² − 1 would mean a random one to
    llama.cpp."""
    digest = hashlib.blake2b(f"{seed}:{part}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (2**32 - 1)
