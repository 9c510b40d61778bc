"""Checks of a response that need no model: what its answer does, what its policy section says, and
whether they agree.

PPO is rewarded by them (`train/`), and `aegis think --paths n` compares several ways of thinking by
them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aegis.errors import DataError
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import Thinking

Stance = Literal["answer", "hand over", "decline"]
STANCE_OF: dict[Decision, Stance] = {
    Decision.ALLOW: "answer",
    Decision.ESCALATION: "hand over",
    Decision.DENY: "decline",
    Decision.REFUSE: "decline",
}
"""What the public answer of each decision does."""

_DECLINES = re.compile(
    r"\b(?:can(?:no|['’])t|won['’]t|will not|unable to|not able to|must decline|refuse|i['’]ll (?:skip|leave out)"
    r"|(?:am|['’]m) not (?:going|able|allowed))\b"
    r"|\b(?:don['’]t|do not) (?:rank|take|discuss|share|give|help|write|provide|talk|answer|judge|recommend|pass|have that)\b"
    r"|^(?:no|error)\b|\b(?:isn['’]t|not) (?:something I|permitted|allowed|possible)\b"
    r"|\bagainst (?:the |our )?(?:policy|rules)\b"
    r"|(?:でき|出せ|作れ|書け|答え(?:られ)?|応じ(?:られ)?|教え(?:られ)?|言え|致しかね|いたしかね|扱え|話せ|伝え(?:られ)?|示せ"
    r"|渡せ|勧め(?:られ)?|取り|協力し|回答し|乗れ|載せ(?:られ)?|調べ(?:られ)?|決められ|お?手伝いしまし?|見せしていま?|語り|ことはし)"
    r"(?:ません|ない)|お手伝いはしません|ていないんです|ていません|お断り|拒否|回答不可|規約違反|無理です|だめです|ダメです",
    re.IGNORECASE,
)
_HANDS_OVER = re.compile(
    r"\b(?:pass|hand|forward|transferr?|refer|flag|alert|rout|connect|bring|involv|send)(?:ed|ing|e|s)?\b.{0,80}"
    r"\b(?:to|on|in|over|person|colleague|you|team|them)\b|\bescalat|\bsent (?:it|this|your)\b|\bmarked (?:it|as)\b"
    r"|\b(?:approv(?:al|e|ed|es)|supervisor|crisis line|emergency (?:number|vet)|call (?:911|999|112|the (?:police|fire))"
    r"|a person|human|counsell?or|colleague|officer|someone to be with)\b"
    r"|引き継|おつなぎ|つなぎます|つないで|取り次|(?:に|を|へ)回し|担当者|職員に|責任者|相談員|上の者|しかるべき窓口|今すぐ.{0,12}(?:電話|119|110)",
    re.IGNORECASE,
)
_STRONG_HANDOVER = re.compile(
    r"\b(?:pass|hand|forward|transferr?|flag|rout|connect|send)(?:ed|ing)\b|\bgoes to\b|\bmarked\b"
    r"|\bcolleague to take|引き継|おつなぎ|確認を回|承認依頼",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s*")
_WORDINGS: dict[Decision, tuple[str, ...]] = {
    Decision.REFUSE: (r"\brefus(?:e|ed|al|ing)\b", "拒否|拒絶"),
    Decision.DENY: (
        r"\b(?:declin(?:e|ed)|denied|not permitted)\b",
        "断る|断り|お断|出せない",
        "しない。?$",
    ),
    Decision.ESCALATION: (
        r"\b(?:escalat\w*|hand(?:ed)? (?:it )?(?:over|to)|(?:goes|go) to (?:a |the )?\w+)\b",
        r"\bneeds? (?:a |human |\w+ )?(?:person|approval)\b",
        "引き継|つなぐ|人の支援|人につな|承認を",
    ),
    Decision.ALLOW: (
        r"\b(?:allow(?:ed)?|answer(?:ed)?|fine|permitted)\b",
        "答える|答えて|応じる|手伝う",
    ),
}
_STATED = {
    decision: re.compile("|".join(words), re.IGNORECASE) for decision, words in _WORDINGS.items()
}
_BARE_NO = re.compile(
    r"(?:i['’]m sorry[, ]+(?:but )?)?i (?:can(?:no|['’])t|won['’]t) (?:help|assist|do that)"
    r"|お(?:答え|手伝い|応え)(?:は)?できません",
    re.IGNORECASE,
)
_NAMES = re.compile(
    r"(?<![A-Za-z])(ALLOW|ESCALATION|DENY|REFUSE)(?![A-Za-z])"
)  # \b fails beside Japanese
_LONG_RUN = 40
_CHAINED = re.compile(r"[-+×x*÷/]\s*$")
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_EQUATION = re.compile(
    r"(?<![\d.])(\d+(?:\.\d+)?)\s*([-+×x*÷/])\s*(\d+(?:\.\d+)?)\s*[=＝]\s*(\d+(?:\.\d+)?)"
)


def stance(final: str) -> Stance:
    """What a public answer does: answers, hands over to a person, or declines. By its wording, in
    English and Japanese."""
    text = final.strip()
    first = _SENTENCE.split(text, maxsplit=1)[0]
    if _DECLINES.search(first):
        return "hand over" if _STRONG_HANDOVER.search(text[:240]) else "decline"
    return "hand over" if _HANDS_OVER.search(text) else "answer"


def stated_decision(policy: str) -> Decision | None:
    """The decision that a policy section names; by its name if it stands there, else by its
    wording; None if unclear."""
    if names := set(_NAMES.findall(policy)):
        return Decision[names.pop()] if len(names) == 1 else None
    for decision in (Decision.REFUSE, Decision.DENY, Decision.ESCALATION, Decision.ALLOW):
        if _STATED[decision].search(policy):
            return decision
    return None


def require_consistent(decision: Decision, thinking: Thinking, *, where: str) -> None:
    """The record's decision does not contradict its own response.

    Only plain contradictions count: a policy section that names another decision in capitals, or an
    ALLOW that says no and nothing else.

    Raises:
        DataError: if it does.
    """
    names = set(_NAMES.findall(thinking.policy.reveal())) - {decision.name}
    if len(names) == 1 and decision.name not in thinking.policy.reveal():
        raise DataError(
            f"{where}: decision is {decision.name}, and thinking.policy says {names.pop()}; correct one of them"
        )
    if decision is Decision.ALLOW and len(thinking.public) < 60 and _BARE_NO.match(thinking.public):
        raise DataError(f"{where}: decision is ALLOW, and final declines; correct one of them")


@dataclass(frozen=True)
class Checks:
    """Which checks a response passes.

    Args:
        stance: the public answer does what `decision` asks for; None without a decision.
        agreement: the policy section names a decision, and the answer does what that one asks for.
        language: the answer is in the prompt's language.
        fresh: the answer repeats neither itself nor, at length, the private sections.
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
        found = (self.agreement, self.language, self.fresh, self.numbers)
        return sum(found) / len(found)


def check(prompt: str, thinking: Thinking, *, decision: Decision | None = None) -> Checks:
    """Run every check."""
    stated, does = stated_decision(thinking.policy.reveal()), stance(thinking.public)
    private = " ".join(body.reveal() for body in thinking.bodies().values())
    return Checks(
        stance=None if decision is None else does == STANCE_OF[decision],
        agreement=stated is not None and does == STANCE_OF[stated],
        language=bool(_JAPANESE.search(prompt)) == bool(_JAPANESE.search(thinking.public)),
        fresh=not _repeats(thinking.public) and _overlap(thinking.public, private) < 0.5,
        numbers=_equations_hold(thinking.public),
    )


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
            votes = Counter(
                stated
                for path in paths
                if (stated := stated_decision(path.policy.reveal())) is not None
            )
            decision = max(
                votes, key=lambda found: (votes[found], found), default=Decision.ESCALATION
            )
        checks = [check(prompt, path, decision=decision) for path in paths]
        fitting = [index for index, found in enumerate(checks) if found.stance]
        agreement = len(fitting) / len(paths)
        score = agreement * sum(checks[index].score for index in fitting) / max(1, len(fitting))
        if not fitting or score < self.threshold:
            return Verified(Decision.ESCALATION, score, agreement, None)
        return Verified(
            decision, score, agreement, max(fitting, key=lambda index: checks[index].score)
        )


def _repeats(text: str) -> bool:
    """A run of words or characters comes back more often than language needs."""
    characters = re.sub(r"\s+", " ", text)
    if len(characters) < 24:
        return False
    grams = [characters[start : start + 8] for start in range(len(characters) - 7)]
    return len(set(grams)) / len(grams) < 0.7


def _overlap(public: str, private: str) -> float:
    """Share of the answer's character runs that stand in the private sections word for word; 1.0
    for one long common run."""
    size = 12 if _JAPANESE.search(public) else 24
    if any(
        public[start : start + _LONG_RUN] in private for start in range(len(public) - _LONG_RUN + 1)
    ):
        return 1.0
    grams = [public[start : start + size] for start in range(len(public) - size + 1)]
    return sum(gram in private for gram in grams) / len(grams) if grams else 0.0


def _equations_hold(text: str) -> bool:
    text = text.replace(",", "")
    for found in _EQUATION.finditer(text):
        if _CHAINED.search(text[: found.start()]):  # the end of a longer sum
            continue
        left, sign, right, result = found.groups()
        a, b, expected = float(left), float(right), float(result)
        if sign in "÷/" and b == 0:
            return False
        value = {"+": a + b, "-": a - b}.get(sign, a / b if sign in "÷/" else a * b)
        if abs(value - expected) > 0.01 * max(1.0, abs(value)):
            return False
    return True
