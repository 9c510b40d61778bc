"""Plain items that AEGIS ships, written for it: they need neither a download nor the harness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aegis.data.records import read_jsonl, require_text
from aegis.data.seed import SEED_FOLDER
from aegis.errors import BadInputError, DataError
from aegis.evaluate.benchmarks.items import Benchmark, Item
from aegis.protocol.language import detect_language

CHOICES_FILE = SEED_FOLDER / "choices.jsonl"
SHIPPED = ("plain_facts", "plain_sense", "plain_grammar", "plain_japanese")
_VERSION = "1"
_FIELDS = {"id", "task", "context", "choices", "answer"}


@dataclass(frozen=True)
class PlainItem:
    """An item: the text that is gone on from, and what may follow; `answer` counts from 0."""

    id: str
    task: str
    context: str
    choices: tuple[str, ...]
    answer: int

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        space = "" if detect_language(self.context) == "ja" else " "
        return tuple((self.context, space + choice) for choice in self.choices)


class PlainTask:
    """What an `Item` asks of its task, as the harness's tasks answer it."""

    multiple_input = False

    def doc_to_choice(self, doc: dict[str, Any]) -> list[str]:
        return list(doc["choices"])

    def doc_to_target(self, doc: dict[str, Any]) -> int:
        return doc["answer"]

    def process_results(
        self, doc: dict[str, Any], answers: Sequence[tuple[float, bool]]
    ) -> dict[str, float]:
        """Return whether the right choice is the most probable one."""
        return {"acc": float(np.argmax([log_prob for log_prob, _ in answers]) == doc["answer"])}


def plain_items() -> list[PlainItem]:
    """Read all of them."""
    return read_jsonl(CHOICES_FILE, parse_plain, name="seed/choices.jsonl")[0]


def shipped_benchmark(
    name: str, *, limit: int | None = None, shots: int | None = None
) -> Benchmark:
    """Return one of the shipped tasks.

    Raises:
        BadInputError: if examples are asked for; it has none.
    """
    if shots:
        raise BadInputError(f"{name}: has no examples to show; leave out --shots {shots}")
    rows = [row for row in plain_items() if row.task == name][:limit]
    task = PlainTask()
    items = [
        Item(task, name, number, asdict(row), pairs=row.pairs) for number, row in enumerate(rows)
    ]
    return Benchmark(name, _VERSION, 0, items, writes=False, harness="aegis")


def parse_plain(raw: dict[str, Any], *, where: str) -> PlainItem:
    """Return the item in `raw`.

    Raises:
        DataError: if a field is missing, unknown or impossible.
    """
    if raw.keys() != _FIELDS:
        raise DataError(f"{where}: must have the fields {', '.join(sorted(_FIELDS))} and no other")
    identity, task, context = (
        require_text(raw[name], name, where) for name in ("id", "task", "context")
    )
    if task not in SHIPPED:
        raise DataError(f"{where}: task must be one of {', '.join(SHIPPED)}, got {task!r}")
    choices = tuple(require_text(choice, "choices", where) for choice in raw["choices"])
    if len(set(choices)) != len(choices) or raw["answer"] not in range(len(choices)):
        raise DataError(f"{where}: choices must differ, and answer be the number of one from 0")
    return PlainItem(identity, task, context, choices, raw["answer"])
