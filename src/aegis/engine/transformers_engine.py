"""The transformers engine: one thread owns the model and takes what many threads ask in batches."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from typing import Any

from aegis.engine.local_thinker import LocalThinker
from aegis.engine.protocol import ThinkingRequest
from aegis.engine.readings import Readings
from aegis.engine.response_sampler import ResponseRequest, SampledResponse, hold_gates
from aegis.engine.verdict import Verdict
from aegis.errors import AegisError
from aegis.model.device import trim_heap
from aegis.model.prompt import disable_word_cache
from aegis.protocol.thinking import Thinking

_POLL_S = 0.5
# Caches grow by a token a step, and glibc keeps the holes that they leave: given back once idle for
# so long, and as often under load. More often costs: at 0.3 s every pause made the next answer
# fault its pages in again, 5 % of its time.
TRIM_S = 15.0


@dataclass
class _Judging:
    prompts: Sequence[str]
    future: Future[list[Verdict]] = field(default_factory=Future)


@dataclass
class _Weighing:
    context: str
    choices: Sequence[str]
    future: Future[list[float]] = field(default_factory=Future)


@dataclass
class _Writing:
    request: ResponseRequest
    cancelled: Callable[[], bool]
    future: Future[Thinking | None] = field(default_factory=Future)


class TransformersEngine:
    """Batches what is asked at the same time; what is asked during a batch is decided between two
    steps of it and thought about in the next. Each method is as in `Engine`.

    Args:
        name: under which the model is served; by default its folder's.
        most_rows: responses sampled at once.
        gather_s: how long a batch waits for company after the last arrival.
    """

    def __init__(
        self, thinker: LocalThinker, *, name: str = "", most_rows: int = 32, gather_s: float = 0.005
    ) -> None:
        self.thinker, self.name, self.context = thinker, name or thinker.name, thinker.context
        self.most_rows, self.gather_s = most_rows, gather_s
        disable_word_cache(thinker.tokenizer)
        self._questions: deque[_Judging | _Weighing] = deque()
        self._writings: deque[_Writing] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="aegis-engine", daemon=True)
        self._worker.start()

    def judge(self, prompts: Sequence[str]) -> list[Verdict]:
        for text in Readings.of(prompts).texts:
            self.thinker.encoder.fitting_ids(text)
        question = _Judging(prompts)
        self._put(self._questions, [question])
        return question.future.result()

    def continuations(self, context: str, choices: Sequence[str]) -> list[float]:
        self.thinker.encoder.continuation_ids(context, choices)  # what is too long is refused here
        question = _Weighing(context, choices)
        self._put(self._questions, [question])
        return question.future.result()

    def think(self, requests: Sequence[ThinkingRequest]) -> list[Thinking | None]:
        rows = self.thinker.requests(requests)
        jobs = [
            _Writing(row, request.cancelled) for row, request in zip(rows, requests, strict=True)
        ]
        self._put(self._writings, jobs)
        return [_result(job) for job in jobs]

    def prompt_tokens(self, prompt: str) -> int:
        return self.thinker.prompt_tokens(prompt)

    def close(self) -> None:
        """End the worker; whatever still waits gets an AegisError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join(timeout=10)

    def _put(self, queue: deque[Any], jobs: Sequence[Any]) -> None:
        with self._changed:
            if self._closed:
                raise AegisError("the engine is closed; start the server again")
            queue.extend(jobs)
            self._changed.notify_all()

    def _work(self) -> None:
        trimmed = time.monotonic()
        with hold_gates(self.thinker.gates):
            while self._wait():
                self._answer_questions()
                if self._writings:
                    self._gather()
                    self._write_waiting()
                if time.monotonic() > trimmed + TRIM_S:
                    trim_heap()
                    trimmed = time.monotonic()
        for job in [*self._questions, *self._writings]:
            _finish(job.future, error=AegisError("the engine is closed; start the server again"))

    def _wait(self) -> bool:
        """Wait until there is something to do; False once the engine is closed."""

        def something() -> object:
            return self._closed or self._questions or self._writings

        with self._changed:
            if not self._changed.wait_for(something, timeout=TRIM_S):
                trim_heap()
                self._changed.wait_for(something)
            return not self._closed

    def _gather(self) -> None:
        """Wait until nobody has joined for `gather_s`, ten times that at most."""
        latest = time.monotonic() + 10 * self.gather_s
        while len(self._writings) < self.most_rows and time.monotonic() < latest:
            before = len(self._writings)
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._questions, timeout=self.gather_s
                )
            if not self._answer_questions() and len(self._writings) == before:
                return

    def _answer_questions(self) -> bool:
        """Answer the questions that wait, all verdicts in one batch; True if there were any."""
        with self._changed:
            questions = list(self._questions)
            self._questions.clear()
        judging = [question for question in questions if isinstance(question, _Judging)]
        with _errors_to(judging):
            prompts = [prompt for question in judging for prompt in question.prompts]
            verdicts = iter(self.thinker.judge(prompts) if prompts else ())
            for question in judging:
                _finish(question.future, [next(verdicts) for _ in question.prompts])
        for question in questions:
            if isinstance(question, _Weighing):
                with _errors_to([question]):
                    scores = self.thinker.continuations(question.context, question.choices)
                    _finish(question.future, scores)
        return bool(questions)

    def _between_steps(self) -> None:
        self._answer_questions()

    def _write_waiting(self) -> None:
        batch: list[_Writing] = []
        with self._changed:
            while self._writings and len(batch) < self.most_rows:
                job = self._writings.popleft()
                if job.future.cancelled() or job.cancelled():
                    _finish(job.future, None)
                else:
                    batch.append(job)
        if not batch:
            return

        def hand_over(index: int, response: SampledResponse) -> None:
            _finish(batch[index].future, response.usable_thinking())

        def dropped(index: int) -> bool:
            job = batch[index]
            drop = self._closed or job.future.cancelled() or job.cancelled()
            if drop:
                _finish(job.future, None)
            return drop

        with _errors_to(batch):
            self.thinker.sampler.each(
                [job.request for job in batch],
                on_response=hand_over,
                dropped=dropped,
                on_token=self._between_steps,
            )
            for job in batch:
                _finish(job.future, None)


def _result(job: _Writing) -> Thinking | None:
    """Wait for a response, and let go of it once nobody else waits."""
    while True:
        with contextlib.suppress(NotYet):
            return job.future.result(timeout=_POLL_S)
        if job.cancelled():
            job.future.cancel()
            return None


@contextlib.contextmanager
def _errors_to(jobs: Sequence[Any]) -> Iterator[None]:
    """Hand errors to whoever asked: they decide what one means."""
    try:
        yield
    except Exception as error:
        for job in jobs:
            _finish(job.future, error=error)


def _finish(future: Future[Any], value: Any = None, *, error: Exception | None = None) -> None:
    """End the future, unless it had ended before."""
    with contextlib.suppress(InvalidStateError):
        if not future.done():
            future.set_exception(error) if error else future.set_result(value)
