"""Ask a backend: from the ledger where it has the answer, else with patience and within bounds."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from aegis.data.sources.generate.backend import (
    AccessError,
    Backend,
    BackendDownError,
    CallError,
    CallUsage,
    RawAnswer,
    Request,
    estimate_tokens,
    storable,
)
from aegis.data.sources.generate.ledger import CeilingError, Ceilings, Kept, Ledger, Origin
from aegis.data.sources.generate.prices import Price, find_price
from aegis.data.sources.generate.steps import prompt_version
from aegis.errors import AegisError
from aegis.storage.files import fingerprint

OUTPUT_TOKENS = {"notes": 500, "questions": 250, "thinking": 600, "pair": 500}
"""What an answer is taken to have until the ledger knows better."""
_FIRST_WAIT_S, _LONGEST_WAIT_S, _SLICE_S = 2.0, 300.0, 0.2


@dataclass(frozen=True)
class Patience:
    """How often a failed call is made again, and how long the pause is.

    Args:
        retries: after the first try.
        sleep, clock: of the system, but in tests.
        random: spreads the pauses, so that workers do not come back together.
    """

    retries: int = 4
    first_wait_s: float = _FIRST_WAIT_S
    longest_wait_s: float = _LONGEST_WAIT_S
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    random: random.Random = field(default_factory=random.Random)

    def pause(self, tried: int, asked_s: float | None) -> float:
        """Return the seconds until the next try, never fewer than the backend asked for.

        Raises:
            CallError: if it asked for more than anybody waits.
        """
        if asked_s is not None and asked_s > self.longest_wait_s:
            raise CallError(f"asks to wait {asked_s:.0f} s", again=False)
        grown = min(self.longest_wait_s, self.first_wait_s * 2**tried)
        return max(asked_s or 0.0, grown * self.random.uniform(0.5, 1.0))


class Calls:
    """A backend behind its ledger; threads may share it.

    Args:
        check: called before each call; raises StoppedError if a stop was asked for.
    """

    def __init__(
        self,
        backend: Backend,
        ledger: Ledger,
        *,
        ceilings: Ceilings | None = None,
        prices: Mapping[str, Price] | None = None,
        patience: Patience | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.backend, self.ledger, self.ceilings = backend, ledger, ceilings or Ceilings()
        self.patience, self.check = patience or Patience(), check
        self.prices = prices or {}
        self.begun = self.patience.clock()
        self.held_until = 0.0
        self.lock, self.used = threading.Lock(), ledger.used()
        self.stopped: Exception | None = None
        """Why no call begins any more: a ceiling, a stop, or no access."""

    def answers(self, requests: Sequence[Request], attempt: int) -> list[Kept]:
        """Return an answer to each request, in the same order.

        Raises:
            CallError: if the backend has none.
            CeilingError, AegisError: as `stopped`.
        """
        kept: dict[int, Kept] = {}
        keys = [self._key(request, attempt) for request in requests]
        for index, key in enumerate(keys):
            if earlier := self.ledger.find(key):
                kept[index] = earlier
        missing = [index for index in range(len(keys)) if index not in kept]
        for start in range(0, len(missing), self.backend.batch):
            part = missing[start : start + self.backend.batch]
            new = self._patiently([keys[i] for i in part], [requests[i] for i in part])
            kept |= dict(zip(part, new, strict=True))
        return [kept[index] for index in range(len(keys))]

    def _key(self, request: Request, attempt: int) -> str:
        identity = (self.backend.name, self.backend.identity, prompt_version())
        return fingerprint(*identity, request.step, request.prompt, attempt)

    def _patiently(self, keys: Sequence[str], requests: Sequence[Request]) -> list[Kept]:
        tried, not_before = 0, 0.0
        while True:
            self._wait_for_turn(not_before)
            try:
                return self._call(keys, requests)
            except AccessError as error:
                name = self.backend.name
                problem = f"--backend {name}: {error}; log in or mend the key"
                self._stop(BackendDownError(f"{problem}, then run the same command again"))
                raise
            except CallError as error:
                if not error.again or tried == self.patience.retries:
                    raise
                pause = self.patience.pause(tried, error.wait_s)
                tried, not_before = tried + 1, self.patience.clock() + pause
                if error.wait_s is not None:  # what the backend asks of one, all of them do
                    with self.lock:
                        self.held_until = max(self.held_until, not_before)

    def _wait_for_turn(self, not_before: float) -> None:
        """Wait until then, and until the end of a pause that the backend asked for.

        Raises:
            CeilingError, AegisError: if no call begins any more.
        """
        while True:
            now = self.patience.clock()
            most_s = self.ceilings.seconds
            if most_s is not None and now - self.begun >= most_s:
                self._stop(CeilingError(f"--max-seconds {most_s:g}"))
            try:
                self.check()
            except AegisError as error:
                self._stop(error)
            if self.stopped is not None:
                raise self.stopped
            left = max(not_before, self.held_until) - now
            if left <= 0:
                return
            self.patience.sleep(min(_SLICE_S, left))

    def _call(self, keys: Sequence[str], requests: Sequence[Request]) -> list[Kept]:
        """Make one call, noted before and after."""
        begun, reached = [], None
        likely = [self.likely(request) for request in requests]
        backend = self.backend
        origin = Origin(backend.name, backend.model, prompt_version())
        try:
            for key, request, usage in zip(keys, requests, likely, strict=True):
                begun.append(self.ledger.begin(key, request, origin, usage, self.ceilings))
        except CeilingError as error:
            reached = self._stop(error)
        kept = []
        if begun:
            likely = likely[: len(begun)]
            try:
                answers = backend.ask(requests[: len(begun)])
            except CallError as error:
                for call, usage in zip(begun, likely, strict=True):
                    told = usage if error.usage is None else self._priced(error.usage, None)
                    self.ledger.end(call, usage, told, error)
                raise
            done = zip(begun, requests[: len(begun)], likely, answers, strict=True)
            for call, request, usage, told in done:
                spent = self._priced(_counted(request, told), told.model)
                model = told.model and storable(told.model)
                answer = replace(told, text=storable(told.text), usage=spent, model=model)
                ended = self.ledger.end(call, usage, spent, answer)
                self._learn(request.step, spent)
                kept.append(Kept(answer, ended, spent.cost or 0.0))
        if reached:
            raise reached
        return kept

    def likely(self, request: Request) -> CallUsage:
        """Return what a call will use, by those before it where there are some."""
        count, used = self.used.get(request.step, (0, CallUsage()))
        if count:
            return CallUsage(
                round((used.input_tokens or 0) / count),
                round((used.output_tokens or 0) / count),
                (used.cost or 0.0) / count,
            )
        usage = CallUsage(estimate_tokens(request.prompt), OUTPUT_TOKENS[request.step])
        others = [(used.cost or 0) / count for count, used in self.used.values()]
        usage = self._priced(usage, None)
        return usage if usage.cost or not others else replace(usage, cost=max(others))

    def _learn(self, step: str, spent: CallUsage) -> None:
        with self.lock:
            count, used = self.used.get(step, (0, CallUsage()))
            total = (
                (used.input_tokens or 0) + (spent.input_tokens or 0),
                (used.output_tokens or 0) + (spent.output_tokens or 0),
                (used.cost or 0.0) + (spent.cost or 0.0),
            )
            self.used[step] = count + 1, CallUsage(*total)

    def _priced(self, usage: CallUsage, model: str | None) -> CallUsage:
        """Return the usage with its cost: the backend's own, else by the table; unknown is 0."""
        if usage.cost is not None:
            return usage
        price = find_price(self.prices, model) or find_price(self.prices, self.backend.model)
        return replace(usage, cost=price.cost(usage) if price else 0.0)

    def _stop(self, reason: Exception) -> Exception:
        """Begin no call any more; return why, which is the first reason that there was."""
        with self.lock:
            self.stopped = self.stopped or reason
            return self.stopped


def _counted(request: Request, answer: RawAnswer) -> CallUsage:
    """Return what a call used, tokens that nobody told counted by length: a ceiling must hold."""
    inputs, outputs = answer.usage.input_tokens, answer.usage.output_tokens
    return CallUsage(
        estimate_tokens(request.prompt) if inputs is None else inputs,
        estimate_tokens(answer.text) if outputs is None else outputs,
        answer.usage.cost,
    )
