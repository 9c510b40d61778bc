"""An item of a benchmark as it is asked, and the result that it comes to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aegis.engine.scoring import Score
from aegis.errors import BadInputError
from aegis.evaluate.results import ItemResult
from aegis.storage.files import fingerprint


@dataclass(frozen=True)
class Item:
    """One item as it is asked.

    Args:
        task: the harness's task that it is of, or what answers as one.
        pairs: contexts and continuations to be weighed; empty where a text is to be written.
        prompt, stops, most_tokens: what to go on from, before what to end, and when at the latest.
    """

    task: Any
    category: str
    doc_id: int
    doc: Any
    pairs: tuple[tuple[str, str], ...] = ()
    prompt: str = ""
    stops: tuple[str, ...] = ()
    most_tokens: int = 0

    @property
    def key(self) -> tuple[str, int, str]:
        return self.category, self.doc_id, self.prompt_hash

    @property
    def prompt_hash(self) -> str:
        return fingerprint(self.pairs, self.prompt, self.stops, self.most_tokens)[:16]

    @property
    def choices(self) -> list[str]:
        """What is chosen from; empty where a text is to be written."""
        return self.task.doc_to_choice(self.doc) if self.pairs else []

    @property
    def target(self) -> int | str:
        """The right choice's number, or the right text."""
        by_input = self.task.multiple_input
        target = self.task.doc_to_text(self.doc) if by_input else self.task.doc_to_target(self.doc)
        if isinstance(target, str) and target in self.choices:
            return self.choices.index(target)
        return target if isinstance(target, int) else str(target)

    def weighed(self, scores: Sequence[Score]) -> ItemResult:
        """Return the result of an item whose continuations were weighed."""
        answers = [(score.log_prob, score.greedy) for score in scores]
        log_probs = tuple(score.log_prob for score in scores)[: len(self.choices) or None]
        measured = _numbers(self.task.process_results(self.doc, answers))
        return self._result(measured, log_probs=log_probs, chosen=int(np.argmax(log_probs)))

    def written(self, response: str) -> ItemResult:
        """Return the result of an item that was answered by a text."""
        from lm_eval.api.instance import Instance

        instance = Instance("generate_until", self.doc, (self.prompt,), 0, resps=[response])
        measured: dict[str, float] = {}
        extracted: dict[str, str] = {}
        for rule in self.task._filters:
            rule.apply([instance])
            answer = instance.filtered_resps[rule.name]
            suffix = "" if rule.name == "none" else f",{rule.name}"
            numbers = _numbers(self.task.process_results(self.doc, [answer]))
            measured |= {f"{name}{suffix}": value for name, value in numbers.items()}
            extracted[rule.name] = str(answer)
        return self._result(measured, response=response, extracted=extracted)

    def _result(self, scores: dict[str, float], **answer: Any) -> ItemResult:
        if not scores:
            raise BadInputError(
                f"{self.category}: none of its metrics is a number for each item; name another task"
            )
        doc = json.loads(json.dumps(self.doc, default=str))
        return ItemResult(
            category=self.category,
            doc_id=self.doc_id,
            doc_hash=fingerprint(doc)[:16],
            target_hash=fingerprint(self.target)[:16],
            prompt_hash=self.prompt_hash,
            target=self.target,
            scores=scores,
            **answer,
        )


@dataclass(frozen=True)
class Benchmark:
    """A task with its items, ready to be asked.

    Args:
        writes: the model writes a text; otherwise continuations are weighed.
        harness: where task and prompts come from, with its version.
    """

    name: str
    version: str
    shots: int
    items: list[Item]
    writes: bool
    harness: str


def _numbers(measured: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in measured.items()
        if isinstance(value, int | float | np.integer | np.floating | np.bool_)
    }
