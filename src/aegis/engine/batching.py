"""Continuous batching: one thread owns llama.cpp, and what many threads ask shares its steps,
joining and leaving at any."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from aegis.engine.llamacpp import GgufModel, InputToken
from aegis.engine.llamacpp_jobs import SequenceJob, WriteJob
from aegis.errors import AegisError
from aegis.model.prompt import common_prefix

_PREFIX = 0  # the sequence that holds what all prompts begin with
# A response goes on with few tokens at once: one of its own, or the tags between two sections and
# the verdict.
_SHORT = 8


@dataclass(repr=False)
class _Lane:
    """Sequences and cells for one kind of job; what finds none waits in the queue, the oldest
    first."""

    free: list[int]
    cells: int
    queue: deque[SequenceJob] = field(default_factory=deque)


class Batcher:
    """Runs jobs until closed. Responses have their own sequences, so that a decision never waits
    for one.

    A step reads at most `model.step` tokens: first what the responses go on with, then prompts, the
    oldest first, in pieces as large as fit.

    Args:
        model: opened; owned from here on, and closed at the end.
        prefix: the ids that most prompts begin with; read once, shared by all that do.
        slots: responses at once.
        readers: other jobs at once.
        room: cells for responses and for other jobs; `model` has the sum of both and the prefix, or
            more.
    """

    def __init__(
        self,
        model: GgufModel,
        *,
        prefix: Sequence[int],
        slots: int,
        readers: int,
        room: tuple[int, int],
    ) -> None:
        self.model, self.prefix = model, list(prefix)
        first = _PREFIX + 1
        self.writings = _Lane(list(range(first, first + slots)), room[0])
        self.readings = _Lane(list(range(first + slots, first + slots + readers)), room[1])
        self.steps = self.written = 0
        self._active: list[SequenceJob] = []
        self._sums = np.zeros((1, model.width))
        self._changed = threading.Condition()
        self._closed = False
        self._read_prefix()
        self._worker = threading.Thread(target=self._work, name="aegis-llama", daemon=True)
        self._worker.start()

    def ask(self, jobs: Sequence[SequenceJob]) -> None:
        """Put the jobs in their queues; AegisError once closed."""
        with self._changed:
            if self._closed:
                raise AegisError("the engine is closed; start the server again")
            for job in jobs:
                self._lane(job).queue.append(job)
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread; what was not finished gets an AegisError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join()

    def _work(self) -> None:
        try:
            while self._wait():
                self._drop_cancelled()
                self._admit()
                try:
                    self._step()
                except Exception as error:  # llama.cpp gave up: what it held is lost, the rest not
                    self._fail_all(error)
                    self._read_prefix()
        finally:
            self._end()

    def _wait(self) -> bool:
        """Wait until there is something to do; False once closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._active or self.readings.queue or self.writings.queue
            )
            return not self._closed

    def _drop_cancelled(self) -> None:
        """Free the sequences of jobs that nobody waits for any more, and take such jobs out of the
        queue."""
        for job in [job for job in self._active if _was_cancelled(job)]:
            self._leave(job)
        with self._changed:
            waiting = list(self.writings.queue)
        for job in [job for job in waiting if _was_cancelled(job)]:
            self.writings.queue.remove(job)

    def _admit(self) -> None:
        for lane in (self.readings, self.writings):
            while lane.queue and lane.free and lane.queue[0].most_tokens <= lane.cells:
                job = lane.queue.popleft()
                # One token at least is to be read: it has the output.
                shared = len(common_prefix([self.prefix, job.ids[:-1]]))
                job.sequence, job.position, job.pending = lane.free.pop(), shared, job.ids[shared:]
                lane.cells -= job.most_tokens
                if shared:
                    self.model.share(_PREFIX, job.sequence, tokens=shared)
                job.skip(self._sums[shared])
                self._active.append(job)

    def _step(self) -> None:
        inputs: list[InputToken] = []
        parts: list[tuple[SequenceJob, range]] = []
        for job in sorted(self._active, key=lambda job: len(job.pending) > _SHORT):
            begin = len(inputs)
            piece = job.pending[: self.model.step - begin]
            for place, token in enumerate(piece, 1):
                output = job.every_output or place == len(job.pending)
                inputs.append(InputToken(token, job.position + place - 1, job.sequence, output))
            if piece:
                parts.append((job, range(begin, len(inputs))))
                del job.pending[: len(piece)]
        if not inputs:
            return
        self.model.read(inputs)
        self.steps += 1
        for job, indices in parts:
            job.position += len(indices)
            try:
                self._take(job, indices)
            except Exception as error:  # this job's alone; the others go on
                self._fail(job, error)

    def _take(self, job: SequenceJob, indices: range) -> None:
        """Hand the job what the step gave at its tokens; a job that is done leaves."""
        all_read = not job.pending
        if not (all_read or job.every_output):
            return
        more = job.take(self.model, indices, all_read=all_read)
        if not all_read:
            return
        if not more:
            self.written += len(job.row.ids) if isinstance(job, WriteJob) else 0
            self._leave(job)
            return
        job.pending = more
        if job.cut_to is not None:
            self.model.forget(job.sequence, after=job.cut_to)
            job.position = job.cut_to

    def _leave(self, job: SequenceJob) -> None:
        self._active.remove(job)
        self.model.forget(job.sequence)
        lane = self._lane(job)
        lane.free.append(job.sequence)
        lane.cells += job.most_tokens

    def _fail(self, job: SequenceJob, error: Exception) -> None:
        job.future.set_exception(error)
        self._leave(job)

    def _fail_all(self, error: Exception) -> None:
        if not isinstance(error, AegisError):
            error = AegisError(f"llama.cpp gave up ({error}); ask again")
        for job in list(self._active):
            self._fail(job, error)
        self.model.clear()

    def _read_prefix(self) -> None:
        """Read what most prompts begin with, and sum its hidden states up to every token."""
        states = [np.zeros((1, self.model.width), dtype=np.float32)]
        for start in range(0, len(self.prefix), self.model.step):
            piece = self.prefix[start : start + self.model.step]
            self.model.read(
                InputToken(token, start + place, _PREFIX, True) for place, token in enumerate(piece)
            )
            states.append(self.model.hidden(range(len(piece))))
        self._sums = np.concatenate(states).cumsum(0, dtype=np.float64)

    def _end(self) -> None:
        with self._changed:
            self._closed = True
        for job in [*self._active, *self.readings.queue, *self.writings.queue]:
            job.future.set_exception(AegisError("the engine is closed; start the server again"))
        self.model.close()

    def _lane(self, job: SequenceJob) -> _Lane:
        return self.writings if isinstance(job, WriteJob) else self.readings


def _was_cancelled(job: SequenceJob) -> bool:
    """Ask whether anybody still waits; if nobody does, the future gets None."""
    try:
        if not job.cancelled():
            return False
    except Exception as error:  # whoever asked decides what an error means
        job.future.set_exception(error)
    else:
        job.future.set_result(None)
    return True
