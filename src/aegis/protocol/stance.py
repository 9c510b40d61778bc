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
    r"\b(?:i|we)\b[^.!?;]{0,40}\b(?:can(?:no|['’])t|won['’]t|will not|unable to|not able to|refuse"
    r"|must decline|not (?:going|allowed)|(?:don['’]t|do not) (?:rank|take|discuss|share|give|help"
    r"|write|provide|talk|answer|judge|recommend|pass|have that))\b"
    r"|\bi['’]ll (?:skip|leave out)\b|\b(?:isn['’]t|not) something I\b"
    r"|\bagainst (?:the |our )?(?:policy|rules)\b"
    r"|(?:でき|出せ|作れ|書け|答え(?:られ)?|応じ(?:られ)?|教え(?:られ)?|(?<!一概には)言え|致しかね"
    r"|いたしかね|扱え|話せ|伝え(?:られ)?|示せ|渡せ|勧め(?:られ)?|立場を取り|協力し|回答し|乗れ"
    r"|載せ(?:られ)?|調べ(?:られ)?|決められ|お?手伝いしまし?|語り|ことはし)(?:ません|ない)"
    r"|お手伝いはしません|(?:書い|案内し|見せし|扱っ|答えし)てい(?:ません|ないんです)|お断り|拒否"
    r"|回答不可|規約違反",
    re.IGNORECASE,
)
# What the assistant itself won't do for the asker; what cannot be done at all is an answer.
_HELP = (
    r"(?:help(?! (?:but|it|my|falling|\w+ing)\b)|assist|do (?:that|this|it|so|such)|comply|answer"
    r"|(?:give|provide|share|offer)(?! (?:you )?(?:an? |the |any )?(?:exact|precise|certain|single"
    r"|real[- ]time|live|current)\b)|discuss|talk about|write(?! by)|explain"
    r"|tell you(?! how \w+ (?:i|we)\b)|disclose|reveal|generate|fulfil|respond|advise"
    r"|(?:engage|participate) in)"
)
_REFUSES = re.compile(
    rf"\bi (?:\w+ )?(?:(?:can|do|will|could|would|may|must) ?n[o'’]t|can['’]t|won['’]t|don['’]t"
    rf"|(?:could|would)n['’]t)(?: \w+ly)? {_HELP}\b"
    rf"|\b(?:i|we) (?:can(?:no|['’])t|won['’]t) (?:help|assist)(?: you)?(?: with)?"
    r"(?: th(?:is|at))?[.,;!]"
    r"|\bi (?:can(?:no|['’])t|won['’]t)\W*$"
    r"|\b(?:i['’]?m|i am|we['’]re|we are) (?:\w+ )?(?:unable|not (?:able|allowed|permitted|going"
    rf"|willing|designed|programmed|in a position)) to {_HELP}\b"
    r"|\b(?:not|n['’]t) (?:feel )?comfortable \w+ing\b"
    r"|\bi (?:(?:must|have to|need to|will|would)(?: \w+ly)? )?(?:decline|refuse)"
    rf"(?:\W*$|[.,;]| to {_HELP}|(?: this| that| your) (?:request|question))"
    rf"|\bi['’]d (?:rather|prefer) not (?:to )?(?:say|{_HELP})"
    r"|(?:\bnot|n['’]t) something (?:that )?i\b"
    r"|\b(?:against|violat\w+|breach\w*) (?:my|our|(?:the |our |this )?(?:content|usage|safety)) "
    r"?(?:\w+ )?(?:polic(?:y|ies)|guidelines|programming|rules)\b"
    r"|\bmy (?:guidelines|instructions|polic(?:y|ies)|programming|rules) (?:do not|don['’]t|prevent"
    r"|forbid|prohibit)|\b(?:this|that|your) (?:request|question) can(?:not|['’]t) be "
    r"|お(?:手伝い|答え|応え|教え|伝え|話し?|見せ)(?:は|も|する(?:こと)?[はがも])?"
    r"(?:でき(?:ません|ない|かね)|(?:いたし|致し|し)(?:ません|かね|ていません)|を?(?:差し)?控え)"
    r"|お力に(?:は)?なれ|に(?:は|も)?協力(?:は|することは)?できません|文[章面]?は(?:書け|作れ)ません|(?<!誰も)(?:手伝え|答えられ|応じられ|教えられ)(?:ません|ない)"
    r"|(?:いたし|致し)かね|お断り(?:し|いた|致|させ)|差し控え"
    r"|(?:(?:[そこ]の|[そこ]れ|そういった|こういった)[^。、]{0,16}|AI[^。]{0,20}|私[^。]{0,20})"
    r"(?:回答|返答|対応|協力|提供|助言|アドバイス|案内|説明|診断|開示|作成|生成)"
    r"(?:は|を|も|する(?:こと)?[はが])?でき(?:ません|ない|かね)"
    r"|(?:規約|ポリシー|ガイドライン|方針)(?:に|の|上)[^。]{0,30}(?:ません|控え|かね)"
    r"|^(?:申し訳|すみません|ごめん)[^、。]*[、。](?:それは|その件は)?でき(?:ません|かね)",
    re.IGNORECASE,
)
_OPENING = re.compile(  # a sentence that only leads up to what is said
    r"(?:no|hm+|hello|unfortunately)\W*$|(?:i['’]m|i am|we are|so|very|\W)*(?:sorry|afraid)\b"
    r"|(?:thank|i (?:understand|see|hear|appreciate|apologi))|申し訳|すみません|ごめん|恐れ入り",
    re.IGNORECASE,
)
_ANOTHERS = re.compile(r"^Dear |語で")  # a letter that was asked for, a translation
_QUOTED = re.compile(r'"[^"]*"|“[^”]*”|「[^」]*」|『[^』]*』')
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
_HANDED_ON = re.compile(
    r"\bi(?:['’](?:ve|ll|m)| have| will| am) (?:\w+ )?(?:pass|hand|forward|transfer|escalat|refer)"
    r"|引き継ぎ(?:ます|ました)|おつなぎ(?:し|いた)|取り次ぎ(?:ます|ました)",
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


def refuses(final: str) -> bool:
    """Return whether the assistant says that it will not help: the one thing that makes an allowed
    answer none. That something cannot be done, is not allowed or is not so is an answer."""
    for sentence in _SENTENCE.split(_QUOTED.sub("", final).strip()):
        if _REFUSES.search(sentence):
            return not _ANOTHERS.search(sentence)
        if not _OPENING.match(sentence):
            break
    return False


def does(decision: Decision, final: str) -> bool:
    """Return whether an answer does what the decision asks for."""
    if decision is Decision.ALLOW:
        return not refuses(final) and not _HANDED_ON.search(final[:240])
    return stance(final) == STANCE_OF[decision]


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
