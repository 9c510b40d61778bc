"""What goes in and what comes out, as closed types: a field that is not here cannot travel."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from aegis.protocol.decisions import NAMES

MOST_CHARACTERS = 32_000
DecisionName = Literal["ALLOW", "ESCALATION", "DENY", "REFUSE"]
FinishReason = Literal["stop", "length", "content_filter"]


def _integer(number: object) -> object:
    """JSON has one kind of number: 5.0 is an integer."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


# Holds more than spaces and controls; one pattern for the server and for its OpenAPI document,
# whose dialects differ on spaces.
_VISIBLE = (
    r"[^\u0000-\u0020\u007f-\u00a0\u00ad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff]"
)
Text = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS, pattern=_VISIBLE)]
AnyText = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Name = Annotated[str, Field(max_length=128)]
Temperature = Annotated[float, Field(ge=0, le=2)]
# Fields before validators, or the document has no bounds.
TokenLimit = Annotated[int, Field(ge=1, le=1024), BeforeValidator(_integer)]
_SEED = 9_223_372_036_854_000_000  # fits 64 bits, and is the same as a floating-point number
Seed = Annotated[int, Field(ge=-_SEED, le=_SEED), BeforeValidator(_integer)]
Zero = Annotated[float, Field(ge=0, le=0)]
EmptyList = Annotated[list[Any], Field(max_length=0)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


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
    user_id: Name | None = None
    max_new_tokens: TokenLimit | None = None
    temperature: Temperature | None = None
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


class TextPart(_Closed):
    type: Literal["text"]
    text: AnyText


class Message(_Closed):
    role: Literal["system", "developer", "user", "assistant"]
    content: AnyText | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    name: Name | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class StreamOptions(_Closed):
    include_usage: bool | None = None


class PlainText(_Closed):
    type: Literal["text"]


class _Unsupported(_Closed):
    """What AEGIS cannot do: null, or the one value that asks for nothing."""

    n: Annotated[int, Field(ge=1, le=1), BeforeValidator(_integer)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0), BeforeValidator(_integer)] | None = None
    echo: Literal[False] | None = None
    tools: EmptyList | None = None
    tool_choice: Literal["none"] | None = None
    functions: EmptyList | None = None
    function_call: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    stop: EmptyList | None = None
    response_format: PlainText | None = None
    store: Literal[False] | None = None


UNSUPPORTED = frozenset(_Unsupported.model_fields)


class ChatRequest(_Unsupported):
    """A chat in OpenAI's form. The last message is the user's; earlier ones become its opening.

    Options that AEGIS has no way to honour (`n`, `logprobs`, `tools`, `echo`, `stop` …) may be null
    or ask for nothing.
    """

    model: Annotated[str, Field(max_length=200)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    temperature: Temperature | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None


class AssistantMessage(_Closed):
    role: Literal["assistant"]
    content: str


class Choice(_Closed):
    index: Literal[0]
    message: AssistantMessage
    finish_reason: FinishReason


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


def probabilities(values: tuple[float, ...]) -> Probabilities:
    return Probabilities(**dict(zip(NAMES, values, strict=True)))


_PARAMETERS = frozenset({"state", "limit", "id", "name"}).union(
    ThinkRequest.model_fields, ChatRequest.model_fields, Resolution.model_fields
)


def known_name(text: object) -> str | None:
    """Return the text if it is a parameter's name, and so not the words of whoever asks."""
    return text if isinstance(text, str) and text in _PARAMETERS else None
