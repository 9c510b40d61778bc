"""From a question to the answer that leaves: one rule for every engine and every way in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aegis.engine.protocol import Engine, ThinkingRequest
from aegis.engine.response_grammar import Sampling
from aegis.engine.verdict import Verdict
from aegis.protocol.checks import SelfVerification, check
from aegis.protocol.decisions import NAMES, Decision
from aegis.protocol.fixed_texts import fixed_text
from aegis.protocol.language import detect_language
from aegis.protocol.stance import stance
from aegis.protocol.thinking import Thinking


@dataclass(frozen=True)
class Answer:
    """What leaves: the public answer and the decision.

    Args:
        probabilities: of the four decisions, in their order, before any escalation by
            self-verification.
        escalated: a person has to decide.
        score: of the self-verification, in [0, 1]; None for a single path.
        paths: the private thinking behind it, for the owner of the machine; in no repr and no JSON.
    """

    final: str
    decision: Decision
    probabilities: tuple[float, ...]
    escalated: bool
    score: float | None = None
    paths: tuple[Thinking, ...] = field(default=(), repr=False)

    @property
    def own(self) -> bool:
        """The answer is in the model's own words, not a fixed text."""
        return self.decision is Decision.ALLOW

    def to_json(self) -> dict[str, Any]:
        shown = {
            "final": self.final,
            "decision": self.decision.name,
            "probabilities": dict(zip(NAMES, self.probabilities, strict=True)),
            "escalated": self.escalated,
        }
        return shown if self.score is None else {**shown, "score": round(self.score, 4)}


def answer(
    engine: Engine,
    prompt: str,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    *,
    paths: int = 1,
    threshold: float = 0.5,
) -> Answer:
    """Decide about a prompt, think about it, and answer as `final_answer` says.

    Args:
        sampling: path n has the seed `sampling.seed` + n.
        paths: how many ways of thinking are weighed against each other.
        threshold: below this score several paths become an ESCALATION.

    Raises:
        DataError: if the prompt is longer than the model's context leaves room for.
    """
    verdict = engine.judge([prompt])[0]
    seeds = range(sampling.seed, sampling.seed + paths)
    requests = [
        ThinkingRequest(prompt, verdict.decision, replace(sampling, seed=seed)) for seed in seeds
    ]
    return final_answer(prompt, verdict, engine.think(requests), threshold=threshold)


def final_answer(
    prompt: str, verdict: Verdict, paths: Sequence[Thinking | None], *, threshold: float = 0.5
) -> Answer:
    """Return the answer that a verdict and one or more ways of thinking come to.

    The verdict decides. Only what is allowed is answered in the model's words; every other decision
    has its fixed text, for a refusal's first sentence says little about its second. An answer that
    repeats its private thinking, declines what is allowed, or on which several paths do not agree,
    becomes an ESCALATION; what was stricter stays as it was.

    Args:
        paths: None where no usable response came out.
        threshold: below this score several paths become an ESCALATION.
    """
    usable = tuple(thinking for thinking in paths if thinking)
    decision, chosen, score = verdict.decision, (usable[0] if usable else None), None
    if len(paths) > 1 and usable:  # DENY and REFUSE are never weakened by it
        verified = SelfVerification(threshold)(prompt, usable, decision=decision)
        score = verified.score * len(usable) / len(paths)  # an empty path agrees with nothing
        chosen = None if verified.chosen is None or score < threshold else usable[verified.chosen]
        decision = decision if chosen else max(decision, Decision.ESCALATION)
    if chosen and not check(prompt, chosen).fresh:
        chosen, decision = None, max(decision, Decision.ESCALATION)
    if decision is Decision.ALLOW and (chosen is None or stance(chosen.public) == "decline"):
        decision, chosen = Decision.ESCALATION, None
    allowed = chosen if decision is Decision.ALLOW else None
    final = allowed.public if allowed else fixed_text(decision, detect_language(prompt))
    return Answer(
        final, decision, verdict.probabilities, decision is Decision.ESCALATION, score, usable
    )
