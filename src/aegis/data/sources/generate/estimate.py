"""What a set of topics will take, before anything is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aegis.data.sources.generate.backend import CallUsage
from aegis.data.sources.generate.calls import Calls
from aegis.data.sources.generate.schemas import Fact, Notes, Thought
from aegis.data.sources.generate.steps import Ask, ask_notes, ask_pair, ask_questions, ask_thinking
from aegis.data.topics import Topic

# As long as answers are; the words are never sent.
_NOTES = Notes(facts=[Fact(statement="x" * 160, source="x" * 40)] * 5)
_THOUGHT = Thought(
    **dict.fromkeys(("task", "safety", "policy", "plan"), "x" * 80),
    decision="ALLOW",
    answer="x" * 160,
)


@dataclass(frozen=True)
class StepEstimate:
    """The calls of one step, all topics together."""

    step: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost: float


@dataclass(frozen=True)
class Estimate:
    """What all steps take, if no answer has to be asked for again.

    Args:
        priced: whether the model's price is known; else `cost` says nothing.
        measured: the figures are means of earlier calls, not guesses by length.
    """

    topics: int
    steps: list[StepEstimate]
    priced: bool
    measured: bool

    def total(self, name: str) -> float:
        return sum(getattr(step, name) for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        names = ("requests", "input_tokens", "output_tokens")
        totals: dict[str, Any] = {name: self.total(name) for name in names}
        totals["cost"] = round(self.total("cost"), 4) if self.priced else None
        return {**totals, "topics": self.topics, "measured": self.measured} | {
            "steps": [asdict(step) for step in self.steps]
        }


def estimate(topics: Sequence[Topic], calls: Calls, *, questions: int, priced: bool) -> Estimate:
    """Return what the topics will take, by the length of prompts or by the ledger's means."""
    rows: dict[str, list[CallUsage]] = {}
    for topic in topics:
        for ask, count in _asks(topic, questions):
            rows.setdefault(ask.request.step, []).extend([calls.likely(ask.request)] * count)
    steps = [
        StepEstimate(
            name,
            len(usages),
            sum(usage.input_tokens or 0 for usage in usages),
            sum(usage.output_tokens or 0 for usage in usages),
            sum(usage.cost or 0.0 for usage in usages),
        )
        for name, usages in rows.items()
    ]
    return Estimate(len(topics), steps, priced, bool(calls.used))


def _asks(topic: Topic, questions: int) -> list[tuple[Ask, int]]:
    return [
        (ask_notes(topic), 1),
        (ask_questions(topic, _NOTES, questions), 1),
        (ask_thinking(topic, _NOTES, topic.question), questions),
        (ask_pair(topic, topic.question, _THOUGHT, 0), questions),
    ]
