"""The chain over items in memory, for the stages of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aegis.config import QualitySettings
from aegis.data.clean.near import band_keys
from aegis.data.clean.steps import is_aside, item_steps, run_steps, step_outcomes
from aegis.data.clean.whole import (
    FACTS,
    SET_STEPS,
    Whole,
    facts_of,
    prompt_for,
    set_aside_copies,
    set_aside_rest,
)
from aegis.data.folder import StepOutcome
from aegis.data.records import Item, Pair, Record, Rejected
from aegis.data.report import reason_kind
from aegis.runs.reporter import bar
from aegis.storage.journal import Remember, compute_anew

_SHARD = 500


@dataclass(frozen=True)
class Cleaned:
    """What is left, what went and why, and each item's id with what each step did to it."""

    records: list[Record]
    pairs: list[Pair]
    rejected: list[Rejected]
    told: list[tuple[str, list[dict[str, Any]]]]
    steps: tuple[tuple[str, int], ...]

    def trace(self) -> Iterator[dict[str, Any]]:
        """Yield what each step did to each item, for `aegis data explain`."""
        for name, told in self.told:
            yield {"id": name, "from": "raw", "steps": told}

    def log(self) -> list[StepOutcome]:
        """Return what came in and went out of each step, and why the others went."""
        reasons: dict[str, Counter[str]] = defaultdict(Counter)
        for _, told in self.told:
            if is_aside(told):
                reasons[told[-1]["step"]][reason_kind(told[-1]["reason"])] += 1
        return step_outcomes(self.steps, len(self.told), reasons)


def clean(
    records: Sequence[Record],
    pairs: Sequence[Pair],
    settings: QualitySettings,
    *,
    too_long: Callable[[str], str | None] = lambda _: None,
    remember: Remember = compute_anew,
) -> Cleaned:
    """Apply in order: length, quality, toxicity, duplicates, outliers, balance.

    Items are examined in shards, so that a killed run does not do a finished shard again.

    Args:
        too_long: why the model could not read a prompt, or None.
        remember: (key, make) → what `make` gives, perhaps from an earlier time.
    """
    items: list[Item] = [*records, *pairs]
    told = _examine(items, settings, too_long=too_long, remember=remember)
    left = [number for number, steps in enumerate(told) if not is_aside(steps)]
    prompts = [prompt_for(items[number]) for number in left]
    bands = band_keys([prompt.text for prompt in prompts], settings.near_duplicate)
    facts = np.array(
        [facts_of(items[number], prompt) for number, prompt in zip(left, prompts, strict=True)],
        FACTS,
    )
    whole = Whole(facts, bands, prompts.__getitem__)
    alive = np.ones(len(left), bool)
    asides = set_aside_copies(whole, settings.near_duplicate)
    alive[[aside.number for aside in asides]] = False
    for aside in asides + set_aside_rest(whole, alive, settings):
        told[left[aside.number]].append(aside.to_json())
    ends = list(zip(items, told, strict=True))
    return Cleaned(
        [item for item, steps in ends if isinstance(item, Record) and not is_aside(steps)],
        [item for item, steps in ends if isinstance(item, Pair) and not is_aside(steps)],
        [Rejected.item(item, steps[-1]["reason"]) for item, steps in ends if is_aside(steps)],
        [(item.id, steps) for item, steps in ends],
        (*((step.name, step.version) for step in item_steps(settings)), *SET_STEPS),
    )


def _examine(
    items: list[Item],
    settings: QualitySettings,
    *,
    too_long: Callable[[str], str | None],
    remember: Remember,
) -> list[list[dict[str, Any]]]:
    """Return what the steps that look at one item tell of each."""
    steps = item_steps(settings, too_long=too_long)
    told: list[list[dict[str, Any]]] = []
    with bar("looking at records and pairs", len(items)) as advance:
        for start in range(0, len(items), _SHARD):
            shard = items[start : start + _SHARD]
            told += remember(
                f"items {start}", lambda shard=shard: [run_steps(item, steps)[2] for item in shard]
            )
            advance(len(shard))
    return [list(steps) for steps in told]
