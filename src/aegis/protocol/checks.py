"""Checks of a response that need no model. PPO is rewarded by them, and `aegis think --paths n`
weighs several ways of thinking by them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aegis.protocol.decisions import Decision
from aegis.protocol.language import detect_language
from aegis.protocol.stance import does, stated_decision
from aegis.protocol.thinking import Thinking

_QUOTATION = {"en": 40, "ja": 20}  # characters: one such run in common is a quotation
_LOOP = re.compile(r"(.{2,200}?)\1{3,}", re.DOTALL)
_LOOPING = 40  # characters
_CHAINED = re.compile(r"[-+×x*÷/]\s*$")
_NUMBER = r"(\d+(?:\.\d+)?)"
_EQUATION = re.compile(rf"(?<![\d.]){_NUMBER}\s*([-+×x*÷/])\s*{_NUMBER}\s*[=＝]\s*{_NUMBER}")


@dataclass(frozen=True)
class Checks:
    """Which checks a response passes.

    Args:
        stance: the public answer does what `decision` asks for; None without a decision.
        agreement: the policy section names a decision, and the answer does what that one asks for.
        language: the answer is in the prompt's language.
        fresh: as `is_fresh` says.
        numbers: every equation in the answer is right.
    """

    stance: bool | None
    agreement: bool
    language: bool
    fresh: bool
    numbers: bool

    @property
    def score(self) -> float:
        """Share of the checks that need no label, in [0, 1]."""
        return sum((self.agreement, self.language, self.fresh, self.numbers)) / 4


def check(prompt: str, thinking: Thinking, *, decision: Decision | None = None) -> Checks:
    """Run every check."""
    stated, public = stated_decision(thinking.policy.reveal()), thinking.public
    return Checks(
        stance=None if decision is None else does(decision, public),
        agreement=stated is not None and does(stated, public),
        language=detect_language(prompt) == detect_language(public),
        fresh=is_fresh(prompt, thinking),
        numbers=_equations_hold(public),
    )


def is_fresh(prompt: str, thinking: Thinking) -> bool:
    """Return whether the answer neither goes round in circles nor quotes a private section at
    length; what stands in the prompt may be repeated."""
    asked, public, *private = (
        " ".join(text.split())
        for text in (
            *(prompt, thinking.public),
            *(body.reveal() for body in thinking.bodies().values()),
        )
    )
    return not (_loops(public, asked) or _quotes(public, private, asked))


@dataclass(frozen=True)
class Verified:
    """What several ways of thinking agree on.

    Args:
        decision: the one that stands; ESCALATION where the score is below the threshold.
        score: agreement on the decision times the mean of the checks, in [0, 1].
        agreement: share of the paths whose answer does what the decision asks for.
        chosen: index of the path whose answer is given; None where the decision was escalated.
    """

    decision: Decision
    score: float
    agreement: float
    chosen: int | None


class SelfVerification:
    """Several ways of thinking about one prompt, weighed against each other.

    Args:
        threshold: below this score the decision becomes ESCALATION.

    Raises:
        ValueError: if the threshold is outside [0, 1].

    Source:
        Wang et al., Self-Consistency Improves Chain of Thought Reasoning in Language Models, 2023.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
        self.threshold = threshold

    def __call__(
        self, prompt: str, paths: Sequence[Thinking], *, decision: Decision | None = None
    ) -> Verified:
        """Weigh the paths.

        Args:
            decision: what the decision head says; without it the paths vote by what their policy
                sections state.

        Raises:
            ValueError: if there is no path.
        """
        if not paths:
            raise ValueError("self-verification needs at least one path")
        if decision is None:
            stated = [stated_decision(path.policy.reveal()) for path in paths]
            votes = Counter(vote for vote in stated if vote is not None)
            decision = max(votes, key=lambda vote: (votes[vote], vote), default=Decision.ESCALATION)
        checks = [check(prompt, path, decision=decision) for path in paths]
        fitting = [index for index, passed in enumerate(checks) if passed.stance]
        agreement = len(fitting) / len(paths)
        score = agreement * sum(checks[index].score for index in fitting) / max(1, len(fitting))
        if not fitting or score < self.threshold:
            return Verified(Decision.ESCALATION, score, agreement, None)
        best = max(fitting, key=lambda index: checks[index].score)
        return Verified(decision, score, agreement, best)


def _loops(text: str, asked: str) -> bool:
    """Check whether the better part of a text is one piece over and over. Rules of tables, and what
    was asked for word by word, are none."""
    return any(
        max(_LOOPING, len(text) / 2) <= len(loop[0])
        and any(map(str.isalpha, loop[1]))
        and loop[1].strip().casefold() not in asked.casefold()
        for loop in _LOOP.finditer(text)
    )


def _quotes(public: str, private: Sequence[str], asked: str) -> bool:
    """Check whether a long run of a private section, which the asker did not write, is in the
    answer."""
    size = _QUOTATION[detect_language(public)]
    runs = (public[start : start + size] for start in range(len(public) - size + 1))
    return any(any(run in body for body in private) and run not in asked for run in runs)


def _equations_hold(text: str) -> bool:
    text = text.replace(",", "")
    for equation in _EQUATION.finditer(text):
        if _CHAINED.search(text[: equation.start()]):  # the end of a longer sum
            continue
        left, sign, right, result = equation.groups()
        a, b, expected = float(left), float(right), float(result)
        if sign in "÷/" and b == 0:
            return False
        value = {"+": a + b, "-": a - b}.get(sign, a / b if sign in "÷/" else a * b)
        if abs(value - expected) > 0.01 * max(1.0, abs(value)):
            return False
    return True
