"""One request from its question to the answer that may leave: judged, thought about, settled,
guarded, recorded."""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aegis.audit import AuditEntry
from aegis.engine.answer import Answer, final_answer
from aegis.engine.judge import Verdict
from aegis.engine.protocol import Engine
from aegis.engine.response_sampler import Limits
from aegis.errors import AegisError, BadInputError
from aegis.protocol.decisions import Decision
from aegis.protocol.fixed_texts import fixed_text
from aegis.protocol.language import detect_language
from aegis.protocol.thinking import Thinking
from aegis.serve.conversation import Turn, last_and_whole
from aegis.serve.escalations import CaseQueue
from aegis.serve.leak_check import find_leak

_log = logging.getLogger("aegis.serve")


class UnavailableError(AegisError):
    """No answer can be given now; nothing of one has left."""


class PromptTooLongError(BadInputError):
    """The prompt and the answer asked for do not fit the model's context."""


class AbandonedError(AegisError):
    """Whoever asked has left, or the server is going down: nobody waits for the answer any more."""


class Audit(Protocol):
    """Where every answer is recorded before it leaves."""

    def append(self, entry: AuditEntry) -> int:
        """The entry is on the disk; raises if it is not."""
        ...


@dataclass(frozen=True)
class AnswerRequest:
    """One request, checked.

    Args:
        id: of the request, made here.
        caller: id of the token; "" where the door is open.
        user: who asks, for the audit log.
        turns: the last is the user's question.
    """

    id: str
    caller: str
    user: str
    turns: tuple[Turn, ...] = field(repr=False)
    final_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class AnswerResult:
    """What leaves, and nothing else.

    Args:
        own: the final is in the model's words, not a fixed text.
        cut: the final is as long as it was allowed to be.
        prompt_tokens: of what was asked.
        final_tokens: of the final, counted on its text.
    """

    id: str
    final: str
    decision: Decision
    probabilities: tuple[float, ...]
    escalated: bool
    own: bool
    cut: bool
    prompt_tokens: int
    final_tokens: int


@dataclass(frozen=True)
class Observer:
    """What the service reports about its work, in numbers and fixed words only."""

    decided: Callable[[Decision], None] = lambda _: None
    withheld: Callable[[str], None] = lambda _: None


class AnswerService:
    """Answers one request at a time for each thread that calls it.

    Args:
        section_tokens: limit of each private section.
        answer_s: after so many seconds the fixed refusal is the answer.
        canary_key: from which each request's canary is made; None puts none into the private
            context.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        audit: Audit,
        cases: CaseQueue,
        section_tokens: int = 48,
        answer_s: float = 120,
        canary_key: bytes | None = None,
        watched: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine, self.audit, self.cases, self.section_tokens = (
            engine,
            audit,
            cases,
            section_tokens,
        )
        self.answer_s, self.canary_key, self.watched, self.clock = (
            answer_s,
            canary_key,
            watched or Observer(),
            clock,
        )
        self.draining, self.stopping = threading.Event(), threading.Event()

    def answer(self, ask: AnswerRequest, gone: Callable[[], bool] = lambda: False) -> AnswerResult:
        """The reply, recorded before it is returned.

        Raises:
            PromptTooLongError: if the prompt leaves no room.
            UnavailableError: if the engine cannot decide, or the answer cannot be recorded.
            AbandonedError: if nobody waits any more.
        """
        until = self.clock() + self.answer_s
        query, whole = last_and_whole(ask.turns)
        limits = Limits(section=self.section_tokens, final=ask.final_tokens)
        canary = self._canary(ask)
        marked = (
            whole if canary is None else f"{whole}\n\n(private mark {canary}, never to be repeated)"
        )
        self._require_fit(marked, limits)
        verdict = self._decide(query, whole)

        def left() -> bool:
            return gone() or self.stopping.is_set()

        thinking, why = self._think(
            ask, marked, verdict.decision, limits, cancelled=lambda: left() or self.clock() > until
        )
        if left():
            raise AbandonedError("nobody waits for the answer")
        if why is None and thinking is None and self.clock() > until:
            why = "out of time"
        answer, why = release(query, verdict, thinking, why=why, canary=canary, asked=whole)
        tokens = max(0, self.engine.prompt_tokens(answer.final) - self.engine.prompt_tokens(""))
        reply = AnswerResult(
            ask.id,
            answer.final,
            answer.decision,
            answer.probabilities,
            answer.escalated,
            own=answer.own,
            cut=answer.own and tokens >= ask.final_tokens,
            prompt_tokens=self.engine.prompt_tokens(whole),
            final_tokens=tokens,
        )
        self._record(ask, whole, thinking, reply, why)
        self.watched.decided(reply.decision)
        if why:
            self.watched.withheld(why)
        return reply

    def _require_fit(self, prompt: str, limits: Limits) -> None:
        tokens = self.engine.prompt_tokens(prompt)
        room = self.engine.context - limits.total
        if tokens > room:
            raise PromptTooLongError(
                f"the prompt has {tokens} tokens and {max(0, room)} fit beside the answer asked for; "
                "shorten it or ask for fewer tokens"
            )

    def _decide(self, query: str, whole: str) -> Verdict:
        try:
            return severest(self.engine.decide([query] if query == whole else [query, whole]))
        except Exception as error:
            tell(error)
            raise UnavailableError("the engine cannot decide now; try again later") from None

    def _think(
        self,
        ask: AnswerRequest,
        prompt: str,
        decision: Decision,
        limits: Limits,
        *,
        cancelled: Callable[[], bool],
    ) -> tuple[Thinking | None, str | None]:
        try:
            given: dict[str, Any] = {
                "limits": limits,
                "temperature": ask.temperature,
                "seed": ask.seed,
            }
            found = self.engine.think(prompt, decision, **given, cancelled=cancelled)
        except Exception as error:
            tell(error)
            return None, "engine error"
        return found, None

    def _canary(self, ask: AnswerRequest) -> str | None:
        if self.canary_key is None:
            return None
        said = "\x1f".join([str(ask.seed), *(turn.text for turn in ask.turns)])
        return hmac.digest(self.canary_key, said.encode(), "sha256").hex()[:16]

    def _record(
        self,
        ask: AnswerRequest,
        whole: str,
        thinking: Thinking | None,
        reply: AnswerResult,
        why: str | None,
    ) -> None:
        """The case is open and the answer is in the audit log, or neither counts."""
        try:
            if reply.escalated:
                self.cases.open(
                    ask.id,
                    owner=ask.caller,
                    user=ask.user,
                    query=whole,
                    probabilities=reply.probabilities,
                )
            entry = AuditEntry(
                request_id=ask.id,
                user=ask.user or None,
                decision=reply.decision.name,
                escalated=reply.escalated,
                model=self.engine.model,
                query=whole,
                sections=thinking.bodies() if thinking else {},
                final=reply.final,
                outcome="answered" if why is None else f"withheld: {why}",
            )
            self.audit.append(entry)
        except Exception as error:
            tell(error)
            if reply.escalated:
                self.cases.withdraw(ask.id)
            raise UnavailableError(
                "the answer cannot be recorded, so it is not given; try again later"
            ) from None


def release(
    query: str,
    verdict: Verdict,
    thinking: Thinking | None,
    *,
    why: str | None = None,
    canary: str | None = None,
    asked: str | None = None,
) -> tuple[Answer, str | None]:
    """The answer that may leave, and why it is the fixed refusal instead of the settled one, if it
    is.

    Args:
        why: what has gone wrong already.
        asked: everything that the asker wrote, the query included.
    """
    if why is None:
        try:
            answer = final_answer(query, verdict, [thinking])
            private = [text.reveal() for text in thinking.bodies().values()] if thinking else []
            why = (
                find_leak(answer.final, private, query=asked or query, canary=canary)
                if answer.own
                else None
            )
            if why is None:
                return answer, None
        except Exception as error:  # whatever it was, nothing has been checked
            tell(error)
            why = "check failed"
    refusal = fixed_text(Decision.REFUSE, detect_language(query))
    return Answer(refusal, Decision.REFUSE, verdict.probabilities, escalated=False), why


def severest(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of the severest decision; of several, the surest."""
    return max(
        verdicts, key=lambda verdict: (verdict.decision, verdict.probabilities[verdict.decision])
    )


def tell(error: BaseException) -> None:
    """What went wrong and where, without the error's own words: they may hold the question's."""
    trace, where = error.__traceback__, "?"
    while trace is not None:
        where = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    _log.error("%s at %s", type(error).__name__, where)
