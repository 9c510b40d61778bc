"""What goes in and what comes out, as closed types: a field that is not here cannot travel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from aegis.engine.answer import Outcome
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
_MOST = 9_223_372_036_854_000_000  # fits 64 bits, and is the same as a floating-point number
TokenLimit = Annotated[int, Field(ge=1, le=_MOST), BeforeValidator(_integer)]
Seed = Annotated[int, Field(ge=-_MOST, le=_MOST), BeforeValidator(_integer)]
TopP = Annotated[float, Field(gt=0, le=1)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]
EmptyList = Annotated[list[Any], Field(max_length=0)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Asked(_Closed):
    """What clients send. A field that is null asks for nothing, whatever its name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, None]  # pyright: ignore[reportIncompatibleVariableOverride]


class ThinkRequest(_Asked):
    """One question.

    Args:
        user_id: your own name for whoever asks, for the audit log, which keeps a keyed commitment
            to it.
        max_new_tokens: limit of the answer; more than the server's own limit is that limit.
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


class Ending(_Closed):
    """What was decided.

    Args:
        outcome: whether that was done, or a check withheld the answer to what is allowed.
        escalated: a person decides; GET /escalations/{id} tells their answer.
        probabilities: of the four decisions, the model's own.
        rule: what made the decision out of them.
    """

    decision: DecisionName
    outcome: Outcome
    escalated: bool
    probabilities: Probabilities
    rule: str


class ThinkResponse(Ending):
    """The answer, and what was decided."""

    id: str
    final: str


class TextPart(_Asked):
    type: Literal["text"]
    text: AnyText


class RefusalPart(_Asked):
    type: Literal["refusal"]
    refusal: AnyText


class Message(_Asked):
    """A message as clients send it, or give it back; annotations and reasoning are not read."""

    role: Literal["system", "developer", "user", "assistant"]
    content: AnyText | Annotated[list[TextPart | RefusalPart], Field(max_length=64)] | None = None
    name: Name | None = None
    refusal: AnyText | None = None
    annotations: list[Any] | None = None
    reasoning: AnyText | None = None
    reasoning_content: AnyText | None = None
    tool_calls: EmptyList | None = None
    function_call: None = None
    audio: None = None

    @property
    def text(self) -> str:
        content = self.content or self.refusal or ""
        if isinstance(content, str):
            return content
        parts = (p.text if isinstance(p, TextPart) else p.refusal for p in content)
        return "\n".join(parts)


class StreamOptions(_Asked):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


IGNORED = [
    "frequency_penalty", "presence_penalty", "repetition_penalty", "top_k", "min_p", "metadata",
    "store", "prediction", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
    "reasoning_effort", "verbosity", "safety_identifier", "service_tier",
]  # fmt: skip
"""What changes nothing here, whatever it asks for; each stands in docs/serve.md."""
_Ignored = create_model("_Ignored", __base__=_Asked, **dict.fromkeys(IGNORED, (Any, None)))  # pyright: ignore


class _Unsupported(_Asked):
    """What AEGIS cannot do: null, or the one value that asks for nothing."""

    n: Annotated[int, Field(ge=1, le=1), BeforeValidator(_integer)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0), BeforeValidator(_integer)] | None = None
    echo: Literal[False] | None = None
    tools: EmptyList | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: EmptyList | None = None
    function_call: Literal["none", "auto"] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    modalities: list[Literal["text"]] | None = None


UNSUPPORTED = frozenset(_Unsupported.model_fields) | {"tool_calls", "audio"}


class ChatRequest(_Unsupported, _Ignored):
    """A chat in OpenAI's form. The last message is the user's; earlier ones become its opening.

    Options that AEGIS has no way to honour (`n`, `logprobs`, `tools`, `echo` …) may be null or ask
    for nothing; those that only tune an answer elsewhere (`metadata`, penalties …) change nothing.

    Args:
        max_tokens: limit of the answer, as `max_completion_tokens`, which goes before it; more
            than the server's own limit is that limit.
        stop: the answer ends before the first of these.
    """

    model: Annotated[str, Field(max_length=200)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
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
    """A chat's answer; `system_fingerprint` is the session that made the model."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    aegis: Ending


class ModelCard(_Closed):
    """The one model: what clients name it by, and the session that made it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    session: str


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


_BODIES = (ThinkRequest, ChatRequest, Resolution, Message, TextPart, RefusalPart, StreamOptions)
_NAMES = frozenset({"state", "limit", "id"}).union(*(body.model_fields for body in _BODIES))


def field_path(location: Sequence[object]) -> str | None:
    """Return a place in a body as `messages[0].content`; None if no field of ours is in it.

    Only names of ours are in it, never the words of whoever asks.
    """
    known = [
        f"[{step}]" if isinstance(step, int) else f".{step}"
        for step in location
        if isinstance(step, int) or step in _NAMES
    ]
    return "".join(known).removeprefix(".") or None
