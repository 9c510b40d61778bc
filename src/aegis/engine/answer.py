"""From a question to the answer that leaves: one rule for every engine and every way in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aegis.engine.protocol import Engine, ThinkingRequest
from aegis.engine.readings import readings
from aegis.engine.response_grammar import Limits, Sampling
from aegis.engine.verdict import MOST_PROBABLE, Verdict
from aegis.protocol.checks import SelfVerification, is_fresh
from aegis.protocol.crisis import is_crisis
from aegis.protocol.decisions import NAMES, Decision
from aegis.protocol.fixed_texts import WITHHELD, Country, begins_as_fixed_text, decided_text
from aegis.protocol.language import detect_language
from aegis.protocol.stance import refuses
from aegis.protocol.thinking import Thinking

Outcome = Literal["decided", "withheld"]
_PATHS_DIFFER = "the paths do not agree: a person looks"


@dataclass(frozen=True)
class Answer:
    """What leaves: the public answer and the decision.

    Args:
        probabilities: of the four decisions, in their order, before any escalation by
            self-verification.
        rule: what made the decision.
        withheld: which check kept back an allowed answer; a fixed text stands in its place.
        score: of the self-verification, in [0, 1]; None for a single path.
        paths: the private thinking behind it, for the owner of the machine; in no repr and no JSON.
    """

    final: str
    decision: Decision
    probabilities: tuple[float, ...]
    rule: str = MOST_PROBABLE
    withheld: str | None = None
    score: float | None = None
    paths: tuple[Thinking, ...] = field(default=(), repr=False)

    @property
    def own(self) -> bool:
        """The answer is in the model's own words, not a fixed text."""
        return self.decision is Decision.ALLOW and self.withheld is None

    @property
    def escalated(self) -> bool:
        """A person has to decide."""
        return self.decision is Decision.ESCALATION

    @property
    def outcome(self) -> Outcome:
        return "withheld" if self.withheld else "decided"

    def without(self, prompt: str, check: str) -> Answer:
        """Return what is said instead where a check keeps the answer back."""
        return replace(self, final=WITHHELD[detect_language(prompt)], withheld=check)

    def to_json(self) -> dict[str, Any]:
        shown = {
            "final": self.final,
            "decision": self.decision.name,
            "rule": self.rule,
            "outcome": self.outcome,
            "probabilities": dict(zip(NAMES, self.probabilities, strict=True)),
            "escalated": self.escalated,
        }
        return shown if self.score is None else {**shown, "score": round(self.score, 4)}


def attempts(sampling: Sampling, paths: int = 1) -> list[Sampling]:
    """Return how an answer is drawn, and how once more if a check keeps it back: by chance then,
    where the most probable one was asked for, since that would be the same again."""
    temperature = sampling.temperature or Sampling.temperature
    return [sampling, replace(sampling, seed=sampling.seed + paths, temperature=temperature)]


def answer(
    engine: Engine,
    prompt: str,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    *,
    paths: int = 1,
    threshold: float = 0.5,
    country: Country | None = None,
) -> Answer:
    """Decide about a prompt, think about it, and answer as `final_answer` says; once more if a
    check keeps the answer back.

    Args:
        sampling: path n has the seed `sampling.seed` + n.
        paths: how many ways of thinking are weighed against each other.
        threshold: below this score several paths become an ESCALATION.
        country: whose help lines somebody in crisis is told.

    Raises:
        DataError: if the prompt is longer than the model's context leaves room for.
    """
    verdict, given = engine.judge([prompt])[0], None
    for drawn in attempts(sampling, paths):
        seeds = range(drawn.seed, drawn.seed + paths)
        requests = [
            ThinkingRequest(prompt, verdict.decision, replace(drawn, seed=seed)) for seed in seeds
        ]
        ways = engine.think(requests)
        given = final_answer(prompt, verdict, ways, threshold=threshold, country=country)
        if not given.withheld:
            break
    assert given
    return given


def likeliest_answers(
    engine: Engine,
    prompts: Sequence[str],
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> list[Answer]:
    """Answer the prompts as `answer` does at temperature 0, all at once.

    Raises:
        DataError: if a prompt is longer than the model's context leaves room for.
    """
    verdicts = engine.judge(prompts)
    given = [final_answer(*each, [None]) for each in zip(prompts, verdicts, strict=True)]
    for sampling in attempts(Sampling(limits, temperature=0)):
        wanting = [index for index, each in enumerate(given) if each.withheld]
        asked = [ThinkingRequest(prompts[i], Decision.ALLOW, sampling) for i in wanting]
        ways = engine.think(asked) if asked else ()
        for index, thinking in zip(wanting, ways, strict=True):
            given[index] = final_answer(prompts[index], verdicts[index], [thinking])
    return given


def final_answer(
    prompt: str,
    verdict: Verdict,
    paths: Sequence[Thinking | None],
    *,
    threshold: float = 0.5,
    asked: str = "",
    country: Country | None = None,
) -> Answer:
    """Return the answer that a verdict and one or more ways of thinking come to.

    The verdict decides. Only what is allowed is answered in the model's words; every other decision
    has its fixed text, for a refusal's first sentence says little about its second. Where several
    paths do not agree on what is allowed, it becomes an ESCALATION. An answer that goes
    round in circles, quotes its private thinking at length, or refuses what is allowed, is
    withheld: that says something about the answer, nothing about the question.

    Args:
        paths: None where no usable response came out.
        threshold: below this score several paths become an ESCALATION.
        asked: all that the asker wrote, if that is more than the prompt.
        country: whose help lines somebody in crisis is told.
    """
    usable = tuple(thinking for thinking in paths if thinking)
    decision, chosen, score = verdict.decision, (usable[0] if usable else None), None
    if len(paths) > 1 and usable:  # DENY and REFUSE are never weakened by it
        verified = SelfVerification(threshold)(prompt, usable, decision=decision)
        score = verified.score * len(usable) / len(paths)  # an empty path agrees with nothing
        chosen = None if verified.chosen is None or score < threshold else usable[verified.chosen]
        decision = decision if chosen else max(decision, Decision.ESCALATION)
    rule = verdict.rule if decision is verdict.decision else _PATHS_DIFFER
    given = Answer("", decision, verdict.probabilities, rule, score=score, paths=usable)
    if decision is not Decision.ALLOW:
        crisis = given.escalated and any(map(is_crisis, readings(asked or prompt)))
        return replace(given, final=decided_text(decision, prompt, crisis=crisis, country=country))
    if chosen is None:
        return given.without(prompt, "no answer")
    if not is_fresh(asked or prompt, chosen):
        return given.without(prompt, "repetition")
    if refuses(chosen.public) or begins_as_fixed_text(chosen.public):
        return given.without(prompt, "declined")
    return replace(given, final=chosen.public)
