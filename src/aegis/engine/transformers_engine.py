"""The transformers engine: one thread owns the model and takes what many threads ask in batches."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from typing import Any

from aegis.engine.judge import Verdict
from aegis.engine.local_thinker import LocalThinker
from aegis.engine.protocol import forget_words
from aegis.engine.response_sampler import (
    Limits,
    ResponseRequest,
    ResponseSampler,
    SampledResponse,
    hold_gates,
    usable_thinking,
)
from aegis.errors import AegisError
from aegis.model.device import trim_heap
from aegis.model.prompt import require_fit
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import Thinking

_POLL_S = 0.5
# Caches grow by a token a step, and glibc keeps the holes that they leave: given back once idle for so long, and as often
# under load. More often costs: at 0.3 s every pause made the next answer fault its pages in again, 5 % of its time.
TRIM_S = 15.0


@dataclass
class _Thought:
    wanted: ResponseRequest
    cancelled: Callable[[], bool]
    future: Future[Thinking | None] = field(default_factory=Future)


@dataclass
class _Question:
    prompts: Sequence[str]
    future: Future[list[Verdict]] = field(default_factory=Future)


class TransformersEngine:
    """Batches what is asked at the same time; what is asked during a batch is decided between two
    steps of it and thought about in the next.

    Args:
        thinker: the loaded model.
        model: the name under which it is served.
        most_rows: responses sampled at once.
        gather_s: how long a batch waits for company after the last arrival.
    """

    name = "hf"

    def __init__(
        self, thinker: LocalThinker, *, model: str, most_rows: int = 32, gather_s: float = 0.005
    ) -> None:
        self.thinker, self.model, self.context = thinker, model, thinker.judge.context
        self.most_rows, self.gather_s = most_rows, gather_s
        forget_words(thinker.tokenizer)
        self._sampler = ResponseSampler(thinker.model, thinker.tokenizer, thinker.tags, Limits())
        self._questions: deque[_Question] = deque()
        self._thoughts: deque[_Thought] = deque()
        self._changed = threading.Condition()
        self._tokenizing = threading.Lock()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="aegis-engine", daemon=True)
        self._worker.start()

    def decide(self, prompts: Sequence[str]) -> list[Verdict]:
        """A verdict a prompt.

        Raises:
            DataError: if a prompt is longer than the model's context.
            AegisError: if the engine is closed.
        """
        for prompt in prompts:
            require_fit(self._ids(prompt), limit=self.context, where="prompt")
        question = _Question(prompts)
        self._ask(self._questions, question)
        return question.future.result()

    def think(
        self,
        prompt: str,
        decision: Decision,
        *,
        limits: Limits,
        temperature: float,
        seed: int,
        cancelled: Callable[[], bool],
    ) -> Thinking | None:
        """One response that knows the decision; None where none came out or `cancelled` became
        true.

        Raises:
            DataError: if the prompt leaves no room for the response.
            AegisError: if the engine is closed.
        """
        ids = self._ids(prompt)
        require_fit(ids, limit=self.context - limits.total, where="prompt")
        thought = _Thought(
            ResponseRequest(tuple(ids), decision, limits, temperature, seed), cancelled
        )
        self._ask(self._thoughts, thought)
        while True:
            with contextlib.suppress(NotYet):
                return thought.future.result(timeout=_POLL_S)
            if cancelled():
                thought.future.cancel()
                return None

    def prompt_tokens(self, prompt: str) -> int:
        return len(self._ids(prompt))

    def close(self) -> None:
        """The worker has ended; whatever still waited was told so."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join(timeout=10)

    def _ids(self, prompt: str) -> list[int]:
        with self._tokenizing:
            return self.thinker.ids(prompt)

    def _ask(self, queue: deque[Any], job: Any) -> None:
        with self._changed:
            if self._closed:
                raise AegisError("the engine is closed; start the server again")
            queue.append(job)
            self._changed.notify_all()

    def _work(self) -> None:
        trimmed = time.monotonic()
        with hold_gates(self.thinker.gates):
            while self._wait():
                self._decide_waiting()
                if self._thoughts:
                    self._gather()
                    self._think_waiting()
                if time.monotonic() > trimmed + TRIM_S:
                    trim_heap()
                    trimmed = time.monotonic()
        for job in [*self._questions, *self._thoughts]:
            _tell(job.future, error=AegisError("the engine is closed; start the server again"))

    def _wait(self) -> bool:
        """Something is to be done; False once the engine is closed."""

        def something() -> object:
            return self._closed or self._questions or self._thoughts

        with self._changed:
            if not self._changed.wait_for(something, timeout=TRIM_S):
                trim_heap()
                self._changed.wait_for(something)
            return not self._closed

    def _gather(self) -> None:
        """Wait until nobody has joined for `gather_s`, ten times that at most."""
        latest = time.monotonic() + 10 * self.gather_s
        while len(self._thoughts) < self.most_rows and time.monotonic() < latest:
            before = len(self._thoughts)
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._questions, timeout=self.gather_s
                )
            if not self._decide_waiting() and len(self._thoughts) == before:
                return

    def _decide_waiting(self) -> bool:
        """Decide what waits; True if anything did."""
        questions: list[_Question] = []
        with self._changed:
            while self._questions:
                questions.append(self._questions.popleft())
        if not questions:
            return False
        try:
            verdicts = iter(
                self.thinker.judge.decide(
                    [prompt for question in questions for prompt in question.prompts]
                )
            )
            for question in questions:
                _tell(question.future, [next(verdicts) for _ in question.prompts])
        except Exception as error:  # whoever asked decides what an error means
            for question in questions:
                _tell(question.future, error=error)
        return True

    def _between(self) -> None:
        self._decide_waiting()

    def _think_waiting(self) -> None:
        batch: list[_Thought] = []
        with self._changed:
            while self._thoughts and len(batch) < self.most_rows:
                thought = self._thoughts.popleft()
                if not thought.future.cancelled() and not thought.cancelled():
                    batch.append(thought)
                else:
                    _tell(thought.future, None)
        if not batch:
            return

        def whole(number: int, path: SampledResponse) -> None:
            _tell(batch[number].future, usable_thinking([path])[0])

        def dropped(number: int) -> bool:
            found = self._closed or batch[number].future.cancelled() or batch[number].cancelled()
            if found:
                _tell(batch[number].future, None)
            return found

        try:
            self._sampler.each(
                [thought.wanted for thought in batch],
                on_path=whole,
                dropped=dropped,
                on_token=self._between,
            )
            for thought in batch:
                _tell(thought.future, None)
        except Exception as error:
            for thought in batch:
                _tell(thought.future, error=error)


def _tell(future: Future[Any], value: Any = None, *, error: Exception | None = None) -> None:
    """The future has its end, unless it had one before."""
    with contextlib.suppress(CancelledError, Exception):
        if not future.done():
            future.set_exception(error) if error else future.set_result(value)
