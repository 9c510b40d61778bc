"""What goes in and what comes out, as closed types: a field that is not here cannot travel."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from aegis.protocol.decisions import NAMES

MOST_CHARACTERS = 32_000
MOST_TOKENS = 1024
MOST_TURNS = 64
DecisionName = Literal["ALLOW", "ESCALATION", "DENY", "REFUSE"]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _whole(number: object) -> object:
    """JSON has one kind of number: 5.0 is an integer."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


TokenLimit = Annotated[
    int, Field(ge=1, le=MOST_TOKENS), BeforeValidator(_whole)
]  # else the document has no bounds
# Holds more than spaces and controls; one pattern for the server and for its document, whose dialects differ on spaces.
_VISIBLE = (
    r"[^\u0000-\u0020\u007f-\u00a0\u00ad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff]"
)
Text = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS, pattern=_VISIBLE)]


class ThinkRequest(_Closed):
    """One question.

    Args:
        user_id: your own name for whoever asks, for the audit log, which keeps a keyed commitment
            to it.
        max_new_tokens: limit of the answer.
        temperature: 0 takes the most probable token.
        stream: send the answer as server-sent events.
    """

    query: Text
    user_id: Annotated[str, Field(max_length=128)] | None = None
    max_new_tokens: TokenLimit | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    stream: bool = False


class Probabilities(_Closed):
    ALLOW: float
    ESCALATION: float
    DENY: float
    REFUSE: float


class ThinkResponse(_Closed):
    """The answer.

    Args:
        probabilities: of the four decisions, as the decision head gave them.
        escalated: a person decides; GET /escalations/{id} tells their answer.
    """

    id: str
    final: str
    decision: DecisionName
    probabilities: Probabilities
    escalated: bool


class ThinkPiece(_Closed):
    """A part of the answer, in a stream."""

    id: str
    text: str


class TextPart(_Closed):
    type: Literal["text"]
    text: Annotated[str, Field(max_length=MOST_CHARACTERS)]


class Message(_Closed):
    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Annotated[str, Field(max_length=MOST_CHARACTERS)]
        | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    )
    name: Annotated[str, Field(max_length=128)] | None = None

    @property
    def text(self) -> str:
        return (
            self.content
            if isinstance(self.content, str)
            else "\n".join(part.text for part in self.content)
        )


class StreamOptions(_Closed):
    include_usage: bool | None = None


class PlainText(_Closed):
    type: Literal["text"]


class _Unsupported(_Closed):
    """What AEGIS cannot do: null, or the one value that asks for nothing."""

    n: Annotated[int, Field(ge=1, le=1), BeforeValidator(_whole)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0), BeforeValidator(_whole)] | None = None
    echo: Literal[False] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none"] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    stop: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: PlainText | None = None
    store: Literal[False] | None = None


UNSUPPORTED = frozenset(_Unsupported.model_fields)


class ChatRequest(_Unsupported):
    """A chat in OpenAI's form. The last message is the user's; earlier ones become its opening.

    Options that AEGIS has no way to honour (`n`, `logprobs`, `tools`, `echo`, `stop` …) may be null
    or ask for nothing.
    """

    model: Annotated[str, Field(max_length=200)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_TURNS)]
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63), BeforeValidator(_whole)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=128)] | None = None


class AssistantMessage(_Closed):
    role: Literal["assistant"]
    content: str


class Choice(_Closed):
    index: Literal[0]
    message: AssistantMessage
    finish_reason: Literal["stop", "length", "content_filter"]


class Usage(_Closed):
    """Tokens of the question and of the answer; what was thought in between is not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(_Closed):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(_Closed):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(_Closed):
    index: Literal[0]
    delta: Delta
    finish_reason: Literal["stop", "length", "content_filter"] | None = None


class ChatChunk(_Closed):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ModelCard(_Closed):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(_Closed):
    object: Literal["list"]
    data: list[ModelCard]


class Resolution(_Closed):
    """A reviewer's answer."""

    answer: Text


class CaseView(_Closed):
    """An escalated question. Askers see what concerns them; `query` and `reviewer` are null to
    them."""

    id: str
    state: Literal["open", "resolved"]
    opened: str
    resolved: str | None
    answer: str | None
    query: str | None
    user: str | None
    reviewer: str | None
    probabilities: Probabilities | None


class CaseList(_Closed):
    cases: list[CaseView]
    waiting: int


class State(_Closed):
    """Whether the server lives, or takes questions."""

    status: Literal["ok", "stopping", "not ready"]


class ErrorDetail(_Closed):
    """What is wrong, in words that never repeat what was sent."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorBody(_Closed):
    error: ErrorDetail


def probabilities(found: tuple[float, ...]) -> Probabilities:
    return Probabilities(**dict(zip(NAMES, found, strict=True)))


_TAKEN = (
    *ThinkRequest.model_fields,
    *ChatRequest.model_fields,
    *Resolution.model_fields,
    "state",
    "limit",
    "id",
    "name",
)


def known_name(text: object) -> str | None:
    """The name, if it is one of ours and not of whoever asks."""
    return text if isinstance(text, str) and text in _TAKEN else None
