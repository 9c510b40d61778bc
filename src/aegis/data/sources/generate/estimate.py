"""What a set of topics will take, before anything is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aegis.data.sources.generate.calls import Calls
from aegis.data.sources.generate.schemas import Fact, Notes, Thought
from aegis.data.sources.generate.steps import Ask, ask_notes, ask_pair, ask_questions, ask_thinking
from aegis.data.topics import Topic

_COUNTS = ("requests", "input_tokens", "output_tokens")
# As long as answers are; the words are never sent.
_NOTES = Notes(facts=[Fact(statement="x" * 160, source="x" * 40)] * 5)
_THOUGHT = Thought(
    **dict.fromkeys(("task", "safety", "policy", "plan"), "x" * 80),
    decision="ALLOW",
    answer="x" * 160,
)


@dataclass(frozen=True)
class Estimate:
    """What all steps take, if no answer has to be asked for again.

    Args:
        steps: requests, input tokens, output tokens and cost of each, all topics together.
        priced: whether the model's price is known; else a cost says nothing.
        measured: the figures are means of earlier calls, not guesses by length.
    """

    topics: int
    steps: dict[str, dict[str, float]]
    priced: bool
    measured: bool

    def total(self, name: str) -> float:
        return sum(step[name] for step in self.steps.values())

    def to_json(self) -> dict[str, Any]:
        totals: dict[str, Any] = {name: self.total(name) for name in _COUNTS}
        totals["cost"] = round(self.total("cost"), 4) if self.priced else None
        steps = [{"step": name, **step} for name, step in self.steps.items()]
        return {**totals, "topics": self.topics, "measured": self.measured, "steps": steps}


def estimate(topics: Sequence[Topic], calls: Calls, *, questions: int, priced: bool) -> Estimate:
    """Return what the topics will take, by the length of prompts or by the ledger's means."""
    steps: dict[str, dict[str, float]] = {}
    for topic in topics:
        for ask, count in _asks(topic, questions):
            usage, names = calls.likely(ask.request), (*_COUNTS, "cost")
            step = steps.setdefault(ask.request.step, dict.fromkeys(names, 0))
            values = (1, usage.input_tokens, usage.output_tokens, usage.cost)
            for name, value in zip(names, values, strict=True):
                step[name] += count * (value or 0)
    return Estimate(len(topics), steps, priced, bool(calls.used))


def _asks(topic: Topic, questions: int) -> list[tuple[Ask, int]]:
    return [
        (ask_notes(topic), 1),
        (ask_questions(topic, _NOTES, questions), 1),
        (ask_thinking(topic, _NOTES, topic.question), questions),
        (ask_pair(topic, topic.question, _THOUGHT, 0), questions),
    ]
