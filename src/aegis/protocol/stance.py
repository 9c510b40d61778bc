"""What an answer does and what a policy section says, by their wording in English and Japanese."""

from __future__ import annotations

import re
from typing import Literal

from aegis.errors import DataError
from aegis.protocol.decisions import NAMES, Decision
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
    r"\b(?:can(?:no|['’])t|won['’]t|will not|unable to|not able to|must decline|refuse"
    r"|i['’]ll (?:skip|leave out)|(?:am|['’]m) not (?:going|able|allowed))\b"
    r"|\b(?:don['’]t|do not) (?:rank|take|discuss|share|give|help|write|provide|talk|answer|judge"
    r"|recommend|pass|have that)\b"
    r"|^(?:no|error)\b|\b(?:isn['’]t|not) (?:something I|permitted|allowed|possible)\b"
    r"|\bagainst (?:the |our )?(?:policy|rules)\b"
    r"|(?:でき|出せ|作れ|書け|答え(?:られ)?|応じ(?:られ)?|教え(?:られ)?|言え|致しかね|いたしかね|扱え"
    r"|話せ|伝え(?:られ)?|示せ|渡せ|勧め(?:られ)?|取り|協力し|回答し|乗れ|載せ(?:られ)?|調べ(?:られ)?"
    r"|決められ|お?手伝いしまし?|見せしていま?|語り|ことはし)(?:ません|ない)"
    r"|お手伝いはしません|ていないんです|ていません|お断り|拒否|回答不可|規約違反|無理です|だめです"
    r"|ダメです",
    re.IGNORECASE,
)
_HANDS_OVER = re.compile(
    r"\b(?:pass|hand|forward|transferr?|refer|flag|alert|rout|connect|bring|involv|send)"
    r"(?:ed|ing|e|s)?\b.{0,80}\b(?:to|on|in|over|person|colleague|you|team|them)\b"
    r"|\bescalat|\bsent (?:it|this|your)\b|\bmarked (?:it|as)\b"
    r"|\b(?:approv(?:al|e|ed|es)|supervisor|crisis line|emergency (?:number|vet)"
    r"|call (?:911|999|112|the (?:police|fire))|a person|human|counsell?or|colleague|officer"
    r"|someone to be with)\b"
    r"|引き継|おつなぎ|つなぎます|つないで|取り次|(?:に|を|へ)回し|担当者|職員に|責任者|相談員"
    r"|上の者|しかるべき窓口|今すぐ.{0,12}(?:電話|119|110)",
    re.IGNORECASE,
)
_STRONG_HANDOVER = re.compile(
    r"\b(?:pass|hand|forward|transferr?|flag|rout|connect|send)(?:ed|ing)\b|\bgoes to\b|\bmarked\b"
    r"|\bcolleague to take|引き継|おつなぎ|確認を回|承認依頼",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s*")
_STATED = {
    Decision.REFUSE: r"\brefus(?:e|ed|al|ing)\b|拒否|拒絶",
    Decision.DENY: r"\b(?:declin(?:e|ed)|denied|not permitted)\b|断る|断り|お断|出せない"
    r"|しない。?$",
    Decision.ESCALATION: r"\b(?:escalat\w*|hand(?:ed)? (?:it )?(?:over|to)"
    r"|(?:goes|go) to (?:a |the )?\w+)\b|\bneeds? (?:a |human |\w+ )?(?:person|approval)\b"
    r"|引き継|つなぐ|人の支援|人につな|承認を",
    Decision.ALLOW: r"\b(?:allow(?:ed)?|answer(?:ed)?|fine|permitted)\b|答える|答えて|応じる"
    r"|手伝う",
}
_BARE_NO = re.compile(
    r"(?:i['’]m sorry[, ]+(?:but )?)?i (?:can(?:no|['’])t|won['’]t) (?:help|assist|do that)"
    r"|お(?:答え|手伝い|応え)(?:は)?できません",
    re.IGNORECASE,
)
_NAMES = re.compile(f"(?<![A-Za-z])({'|'.join(NAMES)})(?![A-Za-z])")  # \b fails beside Japanese


def stance(final: str) -> Stance:
    """Say what a public answer does: it answers, hands over to a person, or declines."""
    text = final.strip()
    first = _SENTENCE.split(text, maxsplit=1)[0]
    if _DECLINES.search(first):
        return "hand over" if _STRONG_HANDOVER.search(text[:240]) else "decline"
    return "hand over" if _HANDS_OVER.search(text) else "answer"


def stated_decision(policy: str) -> Decision | None:
    """Return the decision that a policy section names; by its name if it stands there, else by its
    wording; None if unclear."""
    if names := set(_NAMES.findall(policy)):
        return Decision[names.pop()] if len(names) == 1 else None
    for decision, wording in _STATED.items():  # the severest first
        if re.search(wording, policy, re.IGNORECASE):
            return decision
    return None


def require_consistent(decision: Decision, thinking: Thinking, *, where: str) -> None:
    """Check that a record's decision does not contradict its own response.

    Only plain contradictions count: a policy section that names another decision in capitals, or an
    ALLOW that says no and nothing else.

    Raises:
        DataError: if it does.
    """
    names = set(_NAMES.findall(thinking.policy.reveal())) - {decision.name}
    if len(names) == 1 and decision.name not in thinking.policy.reveal():
        raise DataError(
            f"{where}: decision is {decision.name}, and thinking.policy says {names.pop()}; "
            "correct one of them"
        )
    if decision is Decision.ALLOW and len(thinking.public) < 60 and _BARE_NO.match(thinking.public):
        raise DataError(f"{where}: decision is ALLOW, and final declines; correct one of them")
