"""From a verdict and the thinking behind it to the answer that leaves: one rule for every engine
and every door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aegis.engine.judge import Verdict
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
        found = {
            "final": self.final,
            "decision": self.decision.name,
            "probabilities": dict(zip(NAMES, self.probabilities, strict=True)),
            "escalated": self.escalated,
        }
        return found if self.score is None else {**found, "score": round(self.score, 4)}


def final_answer(
    prompt: str, verdict: Verdict, paths: Sequence[Thinking | None], *, threshold: float = 0.5
) -> Answer:
    """The answer that a verdict and one or more ways of thinking come to.

    The verdict decides. Only what is allowed is answered in the model's words; every other decision
    has its fixed text, for a refusal's first sentence says little about its second. An answer that
    repeats its private thinking, declines what is allowed, or on which several paths do not agree,
    becomes an ESCALATION; what was stricter stays as it was.

    Args:
        paths: None where no usable response came out.
        threshold: below this score several paths become an ESCALATION.
    """
    found = tuple(thinking for thinking in paths if thinking)
    decision, chosen, score = verdict.decision, (found[0] if found else None), None
    if len(paths) > 1 and found:  # DENY and REFUSE are never weakened by it
        verified = SelfVerification(threshold)(prompt, found, decision=decision)
        score = verified.score * len(found) / len(paths)  # an empty path agrees with nothing
        chosen = None if verified.chosen is None or score < threshold else found[verified.chosen]
        decision = decision if chosen else max(decision, Decision.ESCALATION)
    if chosen and not check(prompt, chosen).fresh:
        chosen, decision = None, max(decision, Decision.ESCALATION)
    if decision is Decision.ALLOW and (chosen is None or stance(chosen.public) == "decline"):
        decision, chosen = Decision.ESCALATION, None
    allowed = chosen if decision is Decision.ALLOW else None
    final = allowed.public if allowed else fixed_text(decision, detect_language(prompt))
    return Answer(
        final, decision, verdict.probabilities, decision is Decision.ESCALATION, score, found
    )
