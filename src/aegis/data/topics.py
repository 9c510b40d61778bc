"""Topics: questions that the local model is asked to think about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aegis.data.records import parse_language, require_text
from aegis.errors import DataError
from aegis.protocol.decisions import UNSAFE, Decision, parse_decision

_FIELDS = ("id", "question", "language", "domain", "decision")


@dataclass(frozen=True)
class Topic:
    id: str
    question: str
    language: str
    domain: str
    decision: Decision


def parse_topic(raw: dict[str, Any], *, where: str) -> Topic:
    """Return the topic in `raw`.

    Raises:
        DataError: if a field is missing, unknown or impossible; DENY and REFUSE are not allowed,
            because a generator that has not learned to refuse would write the harm out.
    """
    if unknown := sorted(raw.keys() - set(_FIELDS)):
        raise DataError(
            f"{where}: {unknown[0]!r} is not a field; known fields: {', '.join(_FIELDS)}"
        )
    question = require_text(raw.get("question"), "question", where)
    decision = parse_decision(raw.get("decision", "ALLOW"), where=where)
    if decision in UNSAFE:
        raise DataError(
            f"{where}: a topic's decision must be ALLOW or ESCALATION, got {decision.name}; "
            "remove the topic"
        )
    domain = str(raw.get("domain", "general"))
    language = parse_language(raw, question, where)
    return Topic(str(raw.get("id", where)), question, language, domain, decision)
