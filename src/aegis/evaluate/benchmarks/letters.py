"""Choices asked for by letter, where a server tells no log-probabilities of continuations."""

from __future__ import annotations

import dataclasses
import re
import string
from dataclasses import dataclass

from aegis.errors import BadInputError
from aegis.evaluate.benchmarks.items import Benchmark, Item
from aegis.evaluate.results import ItemResult

_MOST_TOKENS = 16


@dataclass(frozen=True)
class LetterItem(Item):
    """An item whose choices stand in the prompt, each behind its letter."""

    @property
    def choices(self) -> list[str]:
        return self.task.doc_to_choice(self.doc)

    def written(self, response: str) -> ItemResult:
        """Return the result: the first letter that stands alone is what was chosen."""
        letters = string.ascii_uppercase[: len(self.choices)]
        match = re.search(rf"(?<![A-Za-z])[{letters}](?![A-Za-z'’])", response)
        chosen = letters.index(match[0]) if match else None
        right = {"acc": float(chosen == self.target)}
        extracted = {"letter": match[0] if match else "[invalid]"}
        return self._result(right, response=response, extracted=extracted, chosen=chosen)


def by_letter(benchmark: Benchmark) -> Benchmark:
    """Return the benchmark with its choices asked for by letter.

    Raises:
        BadInputError: if its items have no choices, or more than there are letters.
    """
    if benchmark.writes:
        return benchmark
    items: list[Item] = [_letter_item(item) for item in benchmark.items]
    return dataclasses.replace(benchmark, items=items, writes=True)


def _letter_item(item: Item) -> LetterItem:
    contexts, continuations = zip(*item.pairs, strict=True)
    if not 2 <= len(item.pairs) <= len(string.ascii_uppercase):
        raise BadInputError(
            f"{item.category}: has no choices to be asked for by letter; "
            "a server is asked tasks with choices or answers"
        )
    asked, options = contexts[0].strip(), [text.strip() for text in continuations]
    letters = string.ascii_uppercase[: len(options)]
    if len(set(contexts)) > 1:  # the choice stands in the context
        asked = "Which of these is right?"
        pairs = zip(contexts, continuations, strict=True)
        options = [f"{context.strip()} {text.strip()}" for context, text in pairs]
    if options != list(letters):
        lines = (f"{letter}. {text}" for letter, text in zip(letters, options, strict=True))
        asked = "\n".join([asked, *lines])
    prompt = f"{asked}\nAnswer with one letter only: {', '.join(letters)}."
    fields = (item.task, item.category, item.doc_id, item.doc)
    return LetterItem(*fields, prompt=prompt, most_tokens=_MOST_TOKENS)
