"""One request from its question to the answer that may leave: judged, thought about, checked,
recorded."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from aegis.audit import AuditEntry, AuditLog
from aegis.engine.answer import Answer, Outcome, attempts, final_answer
from aegis.engine.protocol import Engine, ThinkingRequest
from aegis.engine.response_grammar import Limits, Sampling
from aegis.engine.verdict import Verdict
from aegis.errors import AegisError, BadInputError
from aegis.protocol.decisions import Decision
from aegis.protocol.fixed_texts import Country
from aegis.protocol.thinking import Thinking
from aegis.serve.conversation import Turn, last_and_whole
from aegis.serve.escalations import CaseQueue
from aegis.serve.leak_check import find_leak
from aegis.serve.logs import log, log_exception
from aegis.serve.metrics import ServerMetrics
from aegis.serve.settings import MOST_FINAL_TOKENS, ServeSettings


class UnavailableError(AegisError):
    """No answer can be given now; nothing of one has left."""


class NoAnswerError(UnavailableError):
    """The engine gave up, or did not answer in time; the outcome says which."""

    def __init__(self, outcome: str) -> None:
        super().__init__(NO_ANSWER[outcome])
        self.outcome = outcome


NO_ANSWER = {
    "engine error": "the engine cannot answer now; try again later",
    "out of time": "there was no answer in time; ask again, or for fewer tokens",
}


class PromptTooLongError(BadInputError):
    """The prompt and the answer asked for do not fit the model's context."""


class AbandonedError(AegisError):
    """Nobody waits for the answer: its client has left, or the server is going down."""


@dataclass(frozen=True)
class AnswerRequest:
    """One request, checked.

    Args:
        caller: id of the token; "" without tokens.
        user: who asks, for the audit log.
        turns: the last is the user's question.
        final_tokens: most tokens of the answer; None for as many as the server gives.
        stop: the answer ends before the first of these.
    """

    id: str
    caller: str
    user: str
    turns: tuple[Turn, ...] = field(repr=False)
    final_tokens: int | None
    temperature: float
    seed: int
    top_p: float = 1.0
    stop: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class AnswerResult:
    """What leaves, and nothing else.

    Args:
        outcome: whether a check withheld an allowed answer.
        rule: what made the decision.
        own: the final is in the model's words, not a fixed text.
        cut: the final is as long as it was allowed to be.
        prompt_tokens: of what was asked.
        final_tokens: of the final, counted on its text.
    """

    id: str
    final: str
    decision: Decision
    probabilities: tuple[float, ...]
    outcome: Outcome
    rule: str
    own: bool
    cut: bool
    prompt_tokens: int
    final_tokens: int

    @property
    def escalated(self) -> bool:
        """A person has to decide."""
        return self.decision is Decision.ESCALATION


class AnswerService:
    """Answers one request at a time for each thread that calls it.

    Once `draining` is set no new request should come; once `stopping` is set nobody waits any more.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        audit: AuditLog,
        cases: CaseQueue,
        settings: ServeSettings,
        metrics: ServerMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine, self.audit, self.cases = engine, audit, cases
        self.settings, self.metrics, self.clock = settings, metrics, clock
        self.draining, self.stopping = threading.Event(), threading.Event()
        self._canary_key = secrets.token_bytes(32) if settings.canary else None

    def answer(
        self, request: AnswerRequest, abandoned: Callable[[], bool] = lambda: False
    ) -> AnswerResult:
        """Return the result, recorded.

        Raises:
            PromptTooLongError: if the prompt leaves no room.
            NoAnswerError: if the engine cannot decide, or what is allowed has no answer in time.
            UnavailableError: if the answer cannot be recorded.
            AbandonedError: if nobody waits any more for what is allowed; the rest is recorded.
        """
        deadline = self.clock() + self.settings.answer_s
        last, whole = last_and_whole(request.turns)
        canary = self._canary(request)
        mark = f"\n\n(private mark {canary}, never to be repeated)" if canary else ""
        limits = self._limits(whole + mark, request.final_tokens)
        verdict = self._decide(last, whole)

        def nobody_waits() -> bool:
            return abandoned() or self.stopping.is_set()

        def draw(sampling: Sampling) -> tuple[Answer, Thinking | None, str | None]:
            thinking, failure = None, None
            asked = ThinkingRequest(whole + mark, verdict.decision, sampling, cancelled)
            try:
                (thinking,) = self.engine.think([asked])
            except Exception as error:
                log_exception(error)
                failure = "engine error"
            if verdict.decision is Decision.ALLOW and nobody_waits():
                raise AbandonedError("nobody waits for the answer")
            if thinking is None and self.clock() > deadline:
                failure = failure or "out of time"
            country = self.settings.country
            answer = release(last, verdict, thinking, canary=canary, asked=whole, country=country)
            # What is not allowed has its text whatever became of the thinking.
            return answer, thinking, failure if answer.withheld else None

        def cancelled() -> bool:
            return nobody_waits() or self.clock() > deadline

        first, *more = attempts(Sampling(limits, request.temperature, request.seed, request.top_p))
        answer, thinking, failure = draw(first)
        for again in more:
            if answer.withheld and not failure:
                self.metrics.retries.inc()
                answer, thinking, failure = draw(again)
        if failure:
            answer = replace(answer, final=NO_ANSWER[failure], withheld=failure)
        result = self._result(request, whole, answer, most=limits.final)
        outcome = failure or result.outcome
        label = outcome if failure or not answer.withheld else f"{outcome}: {answer.withheld}"
        self._record(request, whole, thinking, result, label)
        self.metrics.ended(result.decision, outcome, None if failure else answer.withheld)
        log.info("%s %s %s", request.id, result.decision.name, label)
        if failure:
            raise NoAnswerError(failure)
        return result

    def _canary(self, request: AnswerRequest) -> str | None:
        if self._canary_key is None:
            return None
        asked = "\x1f".join([str(request.seed), *(turn.text for turn in request.turns)])
        return hmac.digest(self._canary_key, asked.encode(), "sha256").hex()[:16]

    def _limits(self, prompt: str, asked: int | None) -> Limits:
        """Return how long an answer may be: as asked for, within server limit and context, which
        must leave as many tokens as a request gets that names no number."""
        section, usual = self.settings.section_tokens, self.settings.final_tokens
        final = min(asked or usual, MOST_FINAL_TOKENS)
        tokens = self.engine.prompt_tokens(prompt)
        left = self.engine.context - tokens - Limits(section, 0).total
        if left < min(final, usual):
            room = self.engine.context - Limits(section, min(final, usual)).total
            raise PromptTooLongError(
                f"the prompt has {tokens} tokens and {max(0, room)} fit beside the answer asked "
                "for; shorten it or ask for fewer tokens"
            )
        return Limits(section, min(final, left))

    def _decide(self, last: str, whole: str) -> Verdict:
        """Return the severest verdict; of several, the surest."""
        try:
            verdicts = self.engine.judge([last] if last == whole else [last, whole])
            return max(verdicts, key=lambda v: (v.decision, v.probabilities[v.decision]))
        except Exception as error:
            log_exception(error)
            self.metrics.ended(None, "engine error")
            raise NoAnswerError("engine error") from None

    def _result(
        self, request: AnswerRequest, whole: str, answer: Answer, *, most: int
    ) -> AnswerResult:
        count = self.engine.prompt_tokens
        final = until(answer.final, request.stop) if answer.own else answer.final
        tokens = max(0, count(final) - count(""))
        return AnswerResult(
            *(request.id, final, answer.decision, answer.probabilities, answer.outcome),
            rule=answer.rule,
            own=answer.own,
            cut=answer.own and tokens >= most,
            prompt_tokens=count(whole),
            final_tokens=tokens,
        )

    def _record(
        self,
        request: AnswerRequest,
        whole: str,
        thinking: Thinking | None,
        result: AnswerResult,
        outcome: str,
    ) -> None:
        """Open the case and append to the audit log, both or neither."""
        try:
            if result.escalated:
                self.cases.open(
                    request.id,
                    owner=request.caller,
                    user=request.user,
                    query=whole,
                    probabilities=result.probabilities,
                )
            entry = AuditEntry(
                request_id=request.id,
                user=request.user or None,
                decision=result.decision.name,
                escalated=result.escalated,
                model=self.engine.name,
                query=whole,
                sections=thinking.bodies() if thinking else {},
                final=result.final,
                outcome=outcome,
            )
            self.audit.append(entry)
        except Exception as error:
            log_exception(error)
            if result.escalated:
                self.cases.withdraw(request.id)
            message = "the answer cannot be recorded, so it is not given; try again later"
            raise UnavailableError(message) from None


def until(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first of the stop texts."""
    return text[: min((text.find(one) for one in stop if one in text), default=None)]


def release(
    query: str,
    verdict: Verdict,
    thinking: Thinking | None,
    *,
    canary: str | None = None,
    asked: str = "",
    country: Country | None = None,
) -> Answer:
    """Return the answer that may leave.

    Args:
        asked: everything that the asker wrote, the query included.
        country: whose help lines somebody in crisis is told.
    """
    try:
        answer = final_answer(query, verdict, [thinking], asked=asked, country=country)
        if not answer.own or thinking is None:
            return answer
        private = [text.reveal() for text in thinking.bodies().values()]
        leak = find_leak(answer.final, private, query=asked or query, canary=canary)
        return answer.without(query, leak) if leak else answer
    except Exception as error:  # whatever it was, nothing has been checked
        log_exception(error)
        failed = Answer("", verdict.decision, verdict.probabilities, verdict.rule)
        return failed.without(query, "check failed")
