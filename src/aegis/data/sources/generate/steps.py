"""The four steps that make records of a topic: what each asks for, and when its answer will do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel

from aegis.data.sources.generate.backend import Request
from aegis.data.sources.generate.schemas import (
    Notes,
    Questions,
    Thought,
    WorseThought,
    json_schema,
    read_answer,
    require_right,
    require_usable,
    require_worse,
)
from aegis.data.topics import Topic
from aegis.inputs.strict_yaml import read_yaml
from aegis.protocol.decisions import Decision

STEPS = ("notes", "questions", "thinking", "pair")
_FACTS = 5
_QUOTED = 2000  # characters of an answer that was of no use, shown to its writer
Assemble = Callable[[Mapping[str, str]], Mapping[str, Any]]


@cache
def texts() -> Mapping[str, Any]:
    path = files("aegis.data.sources.generate").joinpath("prompts.yaml")
    return read_yaml(path.read_text(encoding="utf-8"), "prompts.yaml")


def prompt_version() -> str:
    return texts()["version"]


@dataclass(frozen=True)
class Ask:
    """A request, and what turns its answer into a form or raises DataError."""

    request: Request
    language: str
    read: Callable[[str], Any]

    def again(self, answer: str, error: str) -> Ask:
        """Return the same once more, with what was wrong with the last answer."""
        told = texts()[self.language]["again"].format(error=error, answer=answer[:_QUOTED])
        parts = {name: f"{text}\n({error})" for name, text in self.request.parts.items()}
        prompt = f"{self.request.prompt}\n{told}"
        return replace(self, request=replace(self.request, prompt=prompt, parts=parts))


def ask_notes(topic: Topic) -> Ask:
    def assemble(parts: Mapping[str, str]) -> Mapping[str, Any]:
        return {"facts": [{"statement": parts["fact"], "source": "the model's own memory"}]}

    def read(text: str) -> Notes:
        notes = read_answer(text, Notes)
        require_usable(topic, **{"the statement": notes.facts[0].statement})
        return notes

    values = {"facts": _FACTS}
    return Ask(_request("notes", topic, Notes, assemble, **values), topic.language, read)


def ask_questions(topic: Topic, notes: Notes | None, count: int) -> Ask:
    """Ask for questions about the topic; the local model keeps to the topic's own."""

    def read(text: str) -> list[str]:
        questions = list(dict.fromkeys(read_answer(text, Questions).questions))[:count]
        require_usable(topic, **{f"questions.{n}": text for n, text in enumerate(questions)})
        return questions

    values = {"notes": _listed(notes), "count": count}
    request = _request(
        "questions", topic, Questions, lambda _: {"questions": [topic.question]}, **values
    )
    return Ask(request, topic.language, read)


def ask_thinking(topic: Topic, notes: Notes | None, question: str) -> Ask:
    """Ask for the right response; where it hands over, the local model's answer is fixed words."""

    def assemble(parts: Mapping[str, str]) -> Mapping[str, Any]:
        handed_over = topic.decision == Decision.ESCALATION
        fixed = {"answer": _of(topic)["handover"]} if handed_over else {}
        return {"decision": topic.decision.name, **parts, **fixed}

    def read(text: str) -> Thought:
        thought = read_answer(text, Thought)
        require_right(thought, topic)
        return thought

    values = {"notes": _listed(notes), "question": question}
    request = _request("thinking", topic, Thought, assemble, **values)
    if topic.decision == Decision.ESCALATION:
        parts = {name: text for name, text in request.parts.items() if name != "answer"}
        request = replace(request, parts=parts)
    return Ask(request, topic.language, read)


def ask_pair(topic: Topic, question: str, better: Thought, number: int) -> Ask:
    """Ask for a worse response; `number` picks in what, so that a set has all of it.

    The local model's is worse by rule: it hands over what may be answered, or answers what needs a
    person.
    """
    own = topic.decision == Decision.ESCALATION

    def assemble(parts: Mapping[str, str]) -> Mapping[str, Any]:
        if own:
            return {"decision": "ALLOW", **_of(topic)["own_decision"], **parts}
        fixed = dict(_of(topic)["fixed_pair"])
        return {"decision": "ESCALATION", "answer": fixed.pop("handover"), **fixed}

    def read(text: str) -> WorseThought:
        worse = read_answer(text, WorseThought)
        require_worse(worse, better, topic)
        return worse

    flaws = _of(topic)["flaws"][topic.decision.name]
    values = {"question": question, "answer": better.answer, "flaw": flaws[number % len(flaws)]}
    request = _request("pair", topic, WorseThought, assemble, **values)
    return Ask(request if own else replace(request, parts={}), topic.language, read)


def _of(topic: Topic) -> Mapping[str, Any]:
    return texts()[topic.language]


def _listed(notes: Notes | None) -> str:
    facts = notes.facts if notes else []
    return "\n".join(f"- {fact.statement} ({fact.source})" for fact in facts)


def _request(
    step: str, topic: Topic, form: type[BaseModel], assemble: Assemble, **values: Any
) -> Request:
    asked, schema, decision = _of(topic), json_schema(form), topic.decision.name
    common = {"question": topic.question, "domain": topic.domain, "decision": decision}
    values = {**common, "rule": asked["rules"][decision], **values}
    form_text = asked["form"].format(schema=json.dumps(schema, ensure_ascii=False))
    return Request(
        step=step,
        topic=topic.id,
        prompt=asked[step]["whole"].format(**values) + form_text,
        schema=schema,
        parts={name: text.format(**values) for name, text in asked[step].get("parts", {}).items()},
        assemble=assemble,
    )
