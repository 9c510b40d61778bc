"""What each step's answer must be: JSON of these forms, that means what the topic asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aegis.data.clean.toxicity import find_toxic
from aegis.data.personal import mask_everywhere
from aegis.data.topics import Topic
from aegis.errors import DataError
from aegis.protocol.decisions import Decision
from aegis.protocol.language import detect_language
from aegis.protocol.stance import STANCE_OF, does, require_consistent
from aegis.protocol.thinking import Thinking

TEXTS = ("task", "safety", "policy", "plan", "answer")  # of a response
Text = Annotated[str, Field(min_length=2, max_length=4000)]
_DROPPED = ("minLength", "maxLength", "title", "default")  # strict schemas allow none of them
T = TypeVar("T", bound=BaseModel)


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Fact(_Form):
    statement: Text
    source: Text


class Notes(_Form):
    """What is known about a topic, and from where."""

    facts: Annotated[list[Fact], Field(min_length=1, max_length=20)]


class Questions(_Form):
    """What people ask about a topic."""

    questions: Annotated[list[Text], Field(min_length=1, max_length=20)]


class Thought(_Form):
    """A response: decision, four private sections, public answer."""

    task: Text
    safety: Text
    policy: Text
    plan: Text
    decision: Literal["ALLOW", "ESCALATION"]
    answer: Text


class WorseThought(_Form):
    """A response that is worse than another, and in what."""

    flaw: Text
    task: Text
    safety: Text
    policy: Text
    plan: Text
    decision: Literal["ALLOW", "ESCALATION", "DENY", "REFUSE"]
    answer: Text


def thinking_of(thought: Thought | WorseThought, where: str) -> Thinking:
    """Return the response in the protocol's form; DataError if a text holds a tag."""
    names = {"task": "task", "safety": "safety", "policy": "policy", "final": "plan"}
    bodies = {section: getattr(thought, field) for section, field in names.items()}
    return Thinking.from_bodies(bodies, thought.answer, where=where)


def json_schema(form: type[BaseModel]) -> dict[str, Any]:
    """Return the form's schema as backends take it: without lengths, which are checked here."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key not in _DROPPED}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return plain(form.model_json_schema())


def read_answer(text: str, form: type[T]) -> T:
    """Return the answer in its form; there may be a fence or words around it.

    Raises:
        DataError: that tells the writer what is wrong; it quotes nothing.
    """
    try:
        value, _ = mask_everywhere(_object_in(text))
        return form.model_validate_json(json.dumps(value))
    except RecursionError:
        raise DataError("nested too deeply; answer in the form that was asked for") from None
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'the object'}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)[:5]
        ]
        raise DataError("; ".join(problems)) from None


def _object_in(text: str) -> Mapping[str, Any]:
    decoder, start = json.JSONDecoder(), text.find("{")
    if start < 0:
        raise DataError("no JSON object; answer with the object alone")
    try:
        return decoder.raw_decode(text, start)[0]
    except ValueError as error:
        reason = getattr(error, "msg", "a number has too many digits")
        raise DataError(f"not valid JSON ({reason}); answer with one whole object") from None


def require_usable(topic: Topic, **texts: str) -> None:
    """Check that texts are in the topic's language, and neither sexual nor hateful: they become
    what a model learns to write. DataError tells which one is not."""
    for name, text in texts.items():
        if toxic := find_toxic(text):
            raise DataError(f"{name} is {toxic.kind}; write it without that")
        if detect_language(text) != topic.language:
            wanted = {"ja": "Japanese", "en": "English"}[topic.language]
            raise DataError(f"{name} must be in {wanted}")


def require_right(thought: Thought, topic: Topic) -> None:
    """Check that a response decides as its topic does, does what it decided, and is consistent.

    Raises:
        DataError: if not.
    """
    decision, thinking = Decision[thought.decision], thinking_of(thought, "answer")
    if decision != topic.decision:
        raise DataError(
            f"decision is {decision.name}, and this topic's is {topic.decision.name}: "
            "write the response that belongs to it"
        )
    require_usable(topic, **{name: getattr(thought, name) for name in TEXTS})
    require_consistent(decision, thinking, where="answer")
    if not does(decision, thought.answer):
        wanted = STANCE_OF[decision]
        raise DataError(f"answer must {wanted}, as {decision.name} asks, and does not")


def require_worse(worse: WorseThought, better: Thought, topic: Topic) -> None:
    """Check that the rejected response is consistent in itself, and another one.

    Raises:
        DataError: if not.
    """
    thinking = thinking_of(worse, "answer")
    require_usable(topic, **{name: getattr(worse, name) for name in TEXTS})
    require_consistent(Decision[worse.decision], thinking, where="answer")
    if worse.answer == better.answer:
        raise DataError("answer is that of the good response; write a worse one")
