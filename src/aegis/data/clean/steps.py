"""The steps that look at one item at a time: pure functions with a name, a version and reasons."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aegis.config import QualitySettings
from aegis.data.clean import quality
from aegis.data.clean.toxicity import find_toxic
from aegis.data.folder import StepOutcome
from aegis.data.records import Item, Pair, Plain, Record
from aegis.protocol.decisions import Decision

_REFUSALS = (Decision.REFUSE, Decision.DENY)
_KANA = re.compile("[ぁ-ヺ]")
_ENOUGH_LETTERS, _SURE = 16, 60  # characters; per cent of the text
_NO_CHARACTERS = "".join(
    chr(plane | end) for plane in range(0, 0x110000, 0x10000) for end in (0xFFFE, 0xFFFF)
)
_UNREADABLE = re.compile(f"[\0-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NO_CHARACTERS}]")


@dataclass(frozen=True)
class Effect:
    """What a step did to an item.

    Args:
        item: as it is afterwards.
        reason: why it is set aside, or None.
        note: what `aegis data explain` tells about it.
    """

    item: Item
    reason: str | None = None
    note: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CleanStep:
    """One step of the chain. Another `version` or other settings make earlier results stale."""

    name: str
    version: int
    apply: Callable[[Item], Effect]


def item_steps(
    settings: QualitySettings,
    *,
    too_long: Callable[[str], str | None] = lambda _: None,
    identify: bool = False,
) -> tuple[CleanStep, ...]:
    """Return the steps in their order.

    Args:
        too_long: why the model could not read a prompt, or None.
        identify: have the language identified, for which `pycld2` is needed.
    """
    steps = (
        CleanStep("length", 1, lambda item: Effect(item, too_long(prompt_of(item)))),
        CleanStep("quality", 2, lambda item: _quality(item, settings)),
        CleanStep("toxicity", 2, lambda item: _toxicity(item, route=settings.route_toxic)),
    )
    return (CleanStep("language", 1, _language), *steps) if identify else steps


def run_steps(
    item: Item, steps: Sequence[CleanStep]
) -> tuple[Item, str | None, list[dict[str, Any]]]:
    """Return the item after the steps, why it is set aside, and what to tell of each step.

    A step that set it aside is the last one.
    """
    told: list[dict[str, Any]] = []
    for step in steps:
        effect = step.apply(item)
        item = effect.item
        if effect.note or effect.reason:
            reason = {"reason": effect.reason} if effect.reason else {}
            told.append({"step": step.name, **effect.note, **reason})
        if effect.reason:
            return item, effect.reason, told
    return item, None, told


def is_aside(told: Sequence[dict[str, Any]]) -> bool:
    """Return whether the last of the steps set the item aside."""
    return bool(told) and "reason" in told[-1]


def step_outcomes(
    steps: Iterable[tuple[str, int]], into: int, reasons: Mapping[str, Mapping[str, int]]
) -> list[StepOutcome]:
    """Return the lines of `log.jsonl`: how many of `into` items each step left, and why others
    went."""
    outcomes = []
    for name, version in steps:
        why = dict(sorted(reasons.get(name, {}).items()))
        outcomes.append(StepOutcome(name, version, into, into - sum(why.values()), why))
        into = outcomes[-1].out
    return outcomes


def prompt_of(item: Item) -> str:
    return item.text if isinstance(item, Plain) else item.prompt


def _quality(item: Item, settings: QualitySettings) -> Effect:
    if reason := quality.problem_of(item, settings):
        return Effect(item, reason)
    parts = quality.score(item)
    if parts["score"] >= settings.min_score:
        return Effect(item, None, {"score": parts})
    name = min(parts.keys() - {"score"}, key=lambda part: (parts[part], part))
    reason = f"quality below {settings.min_score:g}: {name} {parts[name]:.2f}"
    return Effect(item, reason, {"score": parts})


def _toxicity(item: Item, *, route: bool) -> Effect:
    """Keep sexual and hateful text out of all responses, and such prompts in the refusal set.

    A prompt that nobody has decided on, and that has no response, is refused by this rule.
    """
    if problem := _toxic_response(item):
        return Effect(item, problem)
    toxic = find_toxic(prompt_of(item)) if route else None
    if toxic is None:
        return Effect(item)
    note = {"kind": toxic.kind, "term": toxic.term, "weight": toxic.weight}
    if isinstance(item, Plain) and item.response is None:
        shared = {name: getattr(item, name) for name in ("id", "language", "domain", "source")}
        kept = {"provenance": item.provenance, "extra": item.extra}
        rationale = f"{toxic.kind} by rule"
        refused = Record(
            prompt=item.text, decision=Decision.REFUSE, rationale=rationale, **shared, **kept
        )
        return Effect(refused, None, {**note, "routed": "REFUSE"})
    decision = item.decision if isinstance(item, Record) else None
    decision = item.chosen.decision if isinstance(item, Pair) else decision
    if decision in _REFUSALS:
        return Effect(item, None, note)
    named = f"labelled {decision.name}" if decision is not None else "not labelled"
    return Effect(item, f"{toxic.kind} prompt, {named}: for the refusal set only", note)


def _toxic_response(item: Item) -> str | None:
    """Return which text that a model would learn to write is sexual or hateful: the response to
    what is allowed, and the private thinking before it. Who hands over or declines may name it: a
    crisis is asked about in plain words."""
    if isinstance(item, Plain):
        texts = {"response": item.response or ""}
    else:
        is_pair = isinstance(item, Pair)
        response, name = (item.chosen, "chosen answer") if is_pair else (item, "answer")
        if response.thinking is None or response.decision != Decision.ALLOW:
            return None
        private = response.thinking.bodies().items()
        texts = {name: response.thinking.public}
        texts |= {f"thinking ({section})": text.reveal() for section, text in private}
    for name, text in texts.items():
        if toxic := find_toxic(text):
            return f"{name} is {toxic.kind}"
    return None


def _language(item: Item) -> Effect:
    """Set aside what is surely in neither of the two languages.

    Kana make it Japanese. Short texts, code and numbers are left to the other steps.
    """
    text = _UNREADABLE.sub(" ", prompt_of(item))
    if len(text) < _ENOUGH_LETTERS or _KANA.search(text):
        return Effect(item)
    import pycld2

    sure, _, (best, *_) = pycld2.detect(text)
    name, code, share, _ = best
    if code in ("ja", "en", "un") or not sure or share < _SURE:
        other = code in ("ja", "en") and code != item.language
        return Effect(item, None, {"identified": code, "share": share} if other else {})
    note = {"identified": code, "share": share}
    return Effect(item, f"in {name.capitalize()}, not Japanese or English", note)
