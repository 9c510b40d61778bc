"""Depth, language and format of a thinking record."""

from __future__ import annotations

import re

from aegis.data.clean import repetition
from aegis.data.records import Record
from aegis.data.score.content import amount, terms
from aegis.data.score.part import ScorePart, worst
from aegis.protocol.checks import is_fresh
from aegis.protocol.decisions import NAMES, Decision
from aegis.protocol.thinking import Thinking

# Content words at which a section says enough; fitted on half of the graded items.
_ENOUGH = {"task": 5, "safety": 4, "policy": 3, "final": 6}
_ANSWER = {Decision.ALLOW: 18, Decision.ESCALATION: 14, Decision.DENY: 14, Decision.REFUSE: 12}
_SHORT_ANSWER = 6  # where a number, a date or a choice is asked for
_ASKS_SHORT = re.compile(
    r"\bhow (?:many|much|long|old|far)\b|\bwhat (?:date|year|is the (?:price|total|last day))\b"
    r"|\bwhich\b.*\bB[).]"
    r"|\bconvert\b|\bwhat does each\b|\bone line\b"
    r"|いくら|いくつ|何[^をがでかの]{0,6}[?？か]|いつ|どれ(?:です|か)|一言|一句",
    re.IGNORECASE | re.DOTALL,
)
_REASON = re.compile(
    r"\b(?:because|since|so that|so|therefore|which|but|although|if|when|while|until|depends"
    r"|instead|first|then|for example)\b"
    r"|ため|ので|から|が、|ても|なら|たら|れば|例えば|たとえば|まず|次に|一方|ただし|場合",
    re.IGNORECASE,
)
_OFFER = re.compile(
    r"\b(?:i can|i['’]d be glad|we can|you can|if you|meanwhile|until|while you|please|instead"
    r"|ask (?:a|the|your)|worth)\b"
    r"|でしたら|なら|ください|ご案内|お手伝いし|お作りし|一緒に|できます|勧め|安心",
    re.IGNORECASE,
)
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_KANA = re.compile(r"[\u3040-\u30ff]")
_CODE = re.compile(r"[=(){}<>;]|^\s*(?:import|def|for|if|with|return)\b")
_LATIN = re.compile(r"[A-Za-z]")
_PLACEHOLDER = re.compile(
    r"\[(?:insert|your answer|answer|fill|name of|topic|todo)[^\]]*\]|\bTODO\b|\bTBD\b|lorem ipsum"
    r"|[●○◯]{2,}|ここに[^。]{0,10}(?:書[くい]|を?入力|を?記入)(?!込)",
    re.IGNORECASE,
)
_ROLES = re.compile(
    r"(?m)^\s*(?:user|assistant|system|human|ユーザー|アシスタント|システム)\s*[:：]", re.I
)
_BOILERPLATE = re.compile(
    r"\bas an ai(?: language)? model\b|\bi hope this helps\b"
    r"|let me know if you have any (?:other|further)"
    r"|AI(?:言語)?モデル(?:なので|として|です)|他にご質問があれば",
    re.IGNORECASE,
)
_SECTIONS_NAMED = re.compile(
    r"\b(?:task|safety|policy|plan)\s*:.*\b(?:task|safety|policy|plan|final)\s*:"
    r"|(?:課題|質問の整理|安全|方針|計画)[:：].*(?:安全|方針|計画|回答方針)[:：]",
    re.IGNORECASE | re.DOTALL,
)
_ENDS = re.compile(r"[.!?。！？…)）」』\"'”’`:;：}\]]\s*$|(?:[\d一-鿿]|です|ます|ね|よ|た|ん)$")


def depth(record: Record, thinking: Thinking) -> ScorePart:
    """Score how much the sections and the answer say, each word counted once."""
    bodies = {name: text.reveal() for name, text in thinking.bodies().items()}
    shares = {name: min(1.0, amount(body) / _ENOUGH[name]) for name, body in bodies.items()}
    public, thin = thinking.public, min(shares, key=lambda name: shares[name])
    short = record.decision is Decision.ALLOW and _ASKS_SHORT.search(record.prompt)
    said = min(1.0, amount(public) / (_SHORT_ANSWER if short else _ANSWER[record.decision]))
    adds = 1.0 if terms(public) - terms(record.prompt) else 0.3
    reasons = min(
        1.0, 0.6 + 0.2 * len(_REASON.findall(public + bodies["final"] + bodies["safety"]))
    )
    offers = 1.0
    if record.decision is not Decision.ALLOW and not _OFFER.search(public):
        offers = 0.6
    sections = sum(shares.values()) / len(shares)
    value = (0.45 * sections + 0.55 * said * offers) * adds * (0.7 + 0.3 * reasons)
    if offers < 1:
        return ScorePart(value, "the answer offers nothing that is possible")
    if said < min(0.6, shares[thin]):
        return ScorePart(value, "the answer says little")
    if shares[thin] < 0.6:
        return ScorePart(value, f"the {thin} section says little")
    return ScorePart(value, "sections and answer say enough")


def language(record: Record, thinking: Thinking) -> ScorePart:
    """Score whether every section and the answer are in the record's language."""
    parts = {name: text.reveal() for name, text in thinking.bodies().items()}
    foreign = [name for name, text in parts.items() if not _speaks(text, record.language)]
    if not _speaks(thinking.public, record.language):
        return ScorePart(0.1, f"the answer is not in {record.language}")
    if foreign:
        share = 1 - len(foreign) / len(parts)
        return ScorePart(0.3 + 0.5 * share, f"the {foreign[0]} section is not in {record.language}")
    return ScorePart(1.0, f"all in {record.language}")


def form(record: Record, thinking: Thinking) -> ScorePart:
    """Score the form: nothing broken, cut off, left to fill in, or private in the answer."""
    bodies = {name: text.reveal() for name, text in thinking.bodies().items()}
    public = thinking.public
    texts = {**bodies, "answer": public}
    parts = [ScorePart(1.0, "nothing wrong with the form")]
    for name, text in texts.items():
        if _PLACEHOLDER.search(text):
            parts.append(ScorePart(0.2, f"{name} holds a place to fill in"))
        if "\ufffd" in text:
            parts.append(ScorePart(0.3, f"{name} holds broken characters"))
        if (share := repetition(text)) > 0.25:
            parts.append(ScorePart(max(0.05, 1 - 1.6 * share), f"{name} repeats itself"))
        if not amount(text) and not re.search(r"\w{2}", text):
            parts.append(ScorePart(0.3, f"{name} is empty words"))
    if (
        _ROLES.search(public)
        or _SECTIONS_NAMED.search(public)
        or not is_fresh(record.prompt, thinking)
    ):
        parts.append(ScorePart(0.25, "the answer shows private thinking or a role"))
    elif any(name in public for name in NAMES[1:]):
        parts.append(ScorePart(0.5, "the answer names the decision"))
    if _BOILERPLATE.search(public):
        parts.append(ScorePart(0.35, "the answer is boilerplate"))
    if not _ENDS.search(public) and not ("\n" in public and len(public.splitlines()[-1]) < 40):
        parts.append(ScorePart(0.4, "the answer is cut off"))
    return worst(*parts)


def _speaks(text: str, language: str) -> bool:
    """Return whether a text is in the language; lines of code have none."""
    lines = [line for line in text.splitlines() if not _CODE.search(line) or _KANA.search(line)]
    text = "\n".join(lines) or text
    japanese, latin = len(_JAPANESE.findall(text)), len(_LATIN.findall(text))
    if language == "en":
        return japanese <= 0.5 * latin
    if not japanese:
        return not latin or bool(re.fullmatch(r"[A-Z\W\d]+", text))
    return latin <= 3 * japanese and (bool(_KANA.search(text)) or japanese < 12)
