"""From a reply to bytes. Streams are cut from the whole answer, so that they say the same to the
last character."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel

from aegis.serve.schemas import (
    AssistantMessage,
    ChatChunk,
    ChatResponse,
    Choice,
    ChunkChoice,
    Delta,
    ErrorBody,
    ErrorDetail,
    ThinkPiece,
    ThinkResponse,
    Usage,
    probabilities,
)
from aegis.serve.service import AnswerResult

KEEP_ALIVE = b": thinking\n\n"
_PIECE = re.compile(r"\S{1,24}\s*|\s+")


def think_body(reply: AnswerResult) -> bytes:
    return _bytes(
        ThinkResponse(
            id=reply.id,
            final=reply.final,
            decision=reply.decision.name,  # pyright: ignore[reportArgumentType]
            probabilities=probabilities(reply.probabilities),
            escalated=reply.escalated,
        )
    )


def think_events(reply: AnswerResult) -> Iterator[bytes]:
    """`piece` events whose texts make up the final, then one `answer` event, the body of the answer
    without streaming."""
    for text in pieces(reply.final):
        yield b"event: piece\n" + _event(ThinkPiece(id=reply.id, text=text))
    yield b"event: answer\ndata: " + think_body(reply) + b"\n\n"


def chat_body(reply: AnswerResult, *, model: str, created: int) -> bytes:
    choice = Choice(
        index=0,
        message=AssistantMessage(role="assistant", content=reply.final),
        finish_reason=_finish(reply),
    )
    return _bytes(
        ChatResponse(
            id=f"chatcmpl-{reply.id}",
            object="chat.completion",
            created=created,
            model=model,
            choices=[choice],
            usage=_usage(reply),
        )
    )


def chat_events(
    reply: AnswerResult, *, model: str, created: int, include_usage: bool = False
) -> Iterator[bytes]:
    """The chunks of OpenAI's stream, `[DONE]` included."""

    def chunk(choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        found = ChatChunk(
            id=f"chatcmpl-{reply.id}",
            object="chat.completion.chunk",
            created=created,
            model=model,
            choices=choices,
            usage=usage,
        )
        return _event(found)

    yield chunk([ChunkChoice(index=0, delta=Delta(role="assistant", content=""))])
    for text in pieces(reply.final):
        yield chunk([ChunkChoice(index=0, delta=Delta(content=text))])
    yield chunk([ChunkChoice(index=0, delta=Delta(), finish_reason=_finish(reply))])
    if include_usage:
        yield chunk([], _usage(reply))
    yield b"data: [DONE]\n\n"


def error_body(
    message: str, *, code: str, type: str = "invalid_request_error", param: str | None = None
) -> bytes:
    return _bytes(
        ErrorBody(error=ErrorDetail(message=message, type=type, code=code, param=param)),
        keep_nulls=True,
    )


def error_event(body: bytes) -> bytes:
    """An error in a stream that has begun; nothing of an answer was in it."""
    return b"data: " + body + b"\n\n"


def pieces(final: str) -> list[str]:
    """Parts of a word or so each, that make up the text."""
    return _PIECE.findall(final)


def _usage(reply: AnswerResult) -> Usage:
    total = reply.prompt_tokens + reply.final_tokens
    return Usage(
        prompt_tokens=reply.prompt_tokens, completion_tokens=reply.final_tokens, total_tokens=total
    )


def _finish(reply: AnswerResult) -> Literal["stop", "length", "content_filter"]:
    """In OpenAI's words; `content_filter`: the answer was replaced by a fixed text."""
    return "content_filter" if not reply.own else "length" if reply.cut else "stop"


def _event(found: BaseModel) -> bytes:
    return b"data: " + _bytes(found) + b"\n\n"


def _bytes(found: BaseModel, *, keep_nulls: bool = False) -> bytes:
    return found.model_dump_json(exclude_none=not keep_nulls).encode()
