"""Several responses a prompt, drawn from a model that the caller brings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from aegis.data.records import Provenance, Record
from aegis.errors import DataError
from aegis.protocol.decisions import Decision
from aegis.protocol.stance import require_consistent
from aegis.protocol.thinking import Thinking
from aegis.storage.journal import Remember, compute_anew

Chances = dict[str, dict[Decision, float]]
"""P(decision) by prompt, from a model's judge."""


@dataclass(frozen=True)
class Draw:
    """One response to be drawn: the same prompt, decision and seed give the same response."""

    prompt: str
    decision: Decision
    seed: int


class SampleSource(Protocol):
    """What draws: an engine, behind two calls."""

    name: str

    def chances(self, prompts: Sequence[str]) -> list[dict[Decision, float]]:
        """Return P(decision) of each prompt."""
        ...

    def draw(self, draws: Sequence[Draw]) -> list[Thinking | None]:
        """Return the responses, None where none came out in the protocol's form."""
        ...


def sample(
    records: Sequence[Record],
    model: SampleSource,
    *,
    count: int,
    seed: int,
    remember: Remember = compute_anew,
    on_prompt: Callable[[], object] = lambda: None,
) -> tuple[list[Record], Chances]:
    """Return `count` responses to each prompt, equal prompts once, and what the judge says.

    Where the judge decides otherwise than the record, half of the responses follow the judge: its
    mistakes are what a pair has to teach. A response that breaks the protocol or contradicts its
    own decision is left out.

    Args:
        remember: (key, make) → what `make` gives, perhaps from an earlier time.
    """
    # Of records with one prompt, one without thinking is its label; another may be a wrong sample.
    prompts = {record.prompt: record for record in records}
    prompts |= {record.prompt: record for record in records if record.thinking is None}
    drawn: list[Record] = []
    chances: Chances = {}
    for record in prompts.values():
        key = hashlib.sha256(record.prompt.encode()).hexdigest()
        given = remember(f"chances {key}", lambda record=record: _chances(model, record))
        chances[record.prompt] = {Decision[name]: value for name, value in given.items()}
        judged = max(Decision, key=lambda each: chances[record.prompt].get(each, 0.0))
        decisions = [judged if number % 2 else record.decision for number in range(count)]
        draws = [Draw(record.prompt, each, seed + n) for n, each in enumerate(decisions)]
        rows = remember(f"draws {key}", lambda draws=draws: _draw(model, draws))
        for number, (decision, row) in enumerate(zip(decisions, rows, strict=True)):
            name = f"{record.id}~{number}"
            if response := row and _response(name, decision, row):
                # The prompt's licence and page stay; when and for how much, the answer's own are.
                kept = record.provenance or Provenance()
                source = Provenance(kept.source, kept.url, "local", model.name, kept.licence)
                made = {"id": name, "decision": decision, "thinking": response}
                drawn.append(replace(record, **made, provenance=source))
        on_prompt()
    return drawn, chances


def _chances(model: SampleSource, record: Record) -> dict[str, float]:
    (given,) = model.chances([record.prompt])
    return {decision.name: round(value, 6) for decision, value in given.items()}


def _draw(model: SampleSource, draws: Sequence[Draw]) -> list[dict[str, object] | None]:
    return [response and response.to_record() for response in model.draw(draws)]


def _response(where: str, decision: Decision, row: dict[str, object]) -> Thinking | None:
    try:
        thinking = Thinking.from_bodies(row["thinking"], row["final"], where=where)  # pyright: ignore[reportArgumentType]
        require_consistent(decision, thinking, where=where)
    except DataError:
        return None
    return thinking
