"""Dates of birth: a date, and words beside it that say whose."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aegis.data.personal.span import Span, context_before

_NUMBER = r"(?:\d{1,4}|[元〇一二三四五六七八九十]{1,4})"
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE = re.compile(
    r"(?<![0-9A-Za-z_])(?:"
    rf"(?:(?:明治|大正|昭和|平成|令和|[MTSHR]) ?)?{_NUMBER}年 ?{_NUMBER}月 ?{_NUMBER}日?"
    r"|(?:[MTSHR]?\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4})"
    rf"|{_NUMBER}月{_NUMBER}日"
    rf"|{_MONTH} {_DAY}(?:,? \d{{4}})?|{_DAY}(?: of)? {_MONTH}(?:,? \d{{4}})?"
    r"|(?:18|19|20)\d{6}|\d{1,2}/\d{1,2}"
    r")(?![0-9A-Za-z_]|[-/.]\d)",
    re.IGNORECASE,
)
_BEFORE = re.compile(
    r"(?:生年月日|誕生日|生まれた(?:の|日)|birth[ _-]?date|date[ _-]of[ _-]birth|\bDOB|\bd\.o\.b"
    r"|birthday|\bborn)(?:[^0-9A-Za-z一-鿿\n]|\b(?:is|was|on|the|in)\b|昭和|平成){0,8}\Z",
    re.IGNORECASE,
)
_AFTER = re.compile(r"[ (（]?(?:に?生まれ(?!変)|生(?![0-9A-Za-z一-鿿ァ-ヿぁ-ま]))")


def find_birth_dates(text: str) -> Iterator[Span]:
    """Yield dates right behind "date of birth" and the like, or right before 生まれ."""
    for match in _DATE.finditer(text):
        before = context_before(text, match.start(), 30)
        if _BEFORE.search(before) or _AFTER.match(text, match.end()):
            yield Span(*match.span(), "BIRTH_DATE")
