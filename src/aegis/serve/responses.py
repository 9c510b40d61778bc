"""From an answer to bytes. A stream is cut from the whole answer, so that both say the same to
the last character."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aegis.serve import schemas
from aegis.serve.service import AnswerResult

KEEP_ALIVE = b": thinking\n\n"
_PIECE = re.compile(r"\S{1,24}\s*|\s+")


class ThinkFormat:
    """The form of `/think`."""

    def body(self, result: AnswerResult) -> bytes:
        response = schemas.ThinkResponse(
            id=result.id,
            final=result.final,
            **_ending(result).model_dump(),
        )
        return response.model_dump_json().encode()

    def events(self, result: AnswerResult) -> Iterator[bytes]:
        """Yield `piece` events that make up the final, then the whole body as `answer`."""
        for text in _PIECE.findall(result.final):
            yield event(_json({"id": result.id, "text": text}), name="piece")
        yield event(self.body(result), name="answer")


@dataclass(frozen=True)
class ChatFormat:
    """OpenAI's form of chat completions."""

    model: str
    session: str
    created: int
    include_usage: bool = False

    def body(self, result: AnswerResult) -> bytes:
        message = schemas.AssistantMessage(role="assistant", content=result.final)
        choice = schemas.Choice(index=0, message=message, finish_reason=_finish_reason(result))
        response = schemas.ChatResponse(
            id=f"chatcmpl-{result.id}",
            object="chat.completion",
            created=self.created,
            model=self.model,
            system_fingerprint=self.session,
            choices=[choice],
            usage=_usage(result),
            aegis=_ending(result),
        )
        return response.model_dump_json().encode()

    def events(self, result: AnswerResult) -> Iterator[bytes]:
        """Yield the chunks of OpenAI's stream, `[DONE]` included."""

        def chunk(*choices: dict[str, Any], **more: Any) -> bytes:
            heading = {"id": f"chatcmpl-{result.id}", "object": "chat.completion.chunk"}
            about = {"created": self.created, "model": self.model}
            about |= {"system_fingerprint": self.session}
            return event(_json({**heading, **about, "choices": choices, **more}))

        yield chunk({"index": 0, "delta": {"role": "assistant", "content": ""}})
        for text in _PIECE.findall(result.final):
            yield chunk({"index": 0, "delta": {"content": text}})
        last = {"index": 0, "delta": {}, "finish_reason": _finish_reason(result)}
        yield chunk(last, aegis=_ending(result).model_dump())
        if self.include_usage:
            yield chunk(usage=_usage(result).model_dump())
        yield event(b"[DONE]")


ResponseFormat = ThinkFormat | ChatFormat


def event(data: bytes, *, name: str | None = None) -> bytes:
    """Return one server-sent event of one line of data."""
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"


def _usage(result: AnswerResult) -> schemas.Usage:
    asked, answered = result.prompt_tokens, result.final_tokens
    return schemas.Usage(
        prompt_tokens=asked, completion_tokens=answered, total_tokens=asked + answered
    )


def _ending(result: AnswerResult) -> schemas.Ending:
    name: Any = result.decision.name
    return schemas.Ending(
        decision=name,
        outcome=result.outcome,
        escalated=result.escalated,
        probabilities=schemas.probabilities(result.probabilities),
        rule=result.rule,
    )


def _finish_reason(result: AnswerResult) -> schemas.FinishReason:
    """Return OpenAI's word; `content_filter` where a fixed text took the answer's place."""
    return "content_filter" if not result.own else "length" if result.cut else "stop"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
