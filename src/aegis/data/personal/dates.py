"""Dates of birth: a date, and words beside it that say whose."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aegis.data.personal.span import Span, context_before

_ERA = "(?:明治|大正|昭和|平成|令和|[MTSHR明大昭平令])"
_NUMBER = r"(?:\d{1,4}|[元〇一二三四五六七八九十]{1,4})"
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE = re.compile(
    r"(?<![0-9A-Za-z_])(?:"
    rf"(?:{_ERA} ?)?{_NUMBER}年 ?{_NUMBER}月 ?{_NUMBER}日?"
    rf"|(?:{_ERA}?\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}})"
    rf"|{_NUMBER}月{_NUMBER}日"
    rf"|{_MONTH} {_DAY}(?:,? \d{{4}})?|{_DAY}(?: of)? {_MONTH}(?:,? \d{{4}})?"
    r"|(?:18|19|20)\d{6}|\d{1,2}/\d{1,2}"
    r")(?![0-9A-Za-z_]|[-/.]\d)",
    re.IGNORECASE,
)
_BEFORE = re.compile(
    r"(?:生年月日|誕生日|生まれ(?:は|た(?:の|日))|出生(?:年月)?日|バースデー"
    r"|date[ _-]?of[ _-]?birth|\bDOB|\bd\.o\.b"
    r"|birth(?:day|[ _-]?date)?\b|\bborn(?: in [a-z]{2,20})?)"
    r"(?:[^0-9A-Za-z一-鿿\n]|\b(?:is|was|on|the|in|falls)\b|西暦|和暦"
    r"|[大昭平令][正和成]\d{1,2}年){0,8}\Z",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"[ (]?(?:に?[生う]まれ(?!変|つき)|生(?![0-9A-Za-z一-鿿ァ-ヿぁ-ま])"
    r"|[はが、](?:[^0-9、。\n]{0,6}の)?誕生日"
    r"|(?:is|was) (?:my|his|her|their) (?:birthday|date of birth))"
)


def find_birth_dates(text: str) -> Iterator[Span]:
    """Yield dates right behind "date of birth" and the like, or right before 生まれ."""
    for match in _DATE.finditer(text):
        before = context_before(text, match.start(), 30)
        if _BEFORE.search(before) or _AFTER.match(text, match.end()):
            yield Span(*match.span(), "BIRTH_DATE")
