"""Telephone numbers: shapes first, then phonenumbers' own tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aegis.data.personal.span import Span, context_before, digits_of

_BETWEEN = r"[-. ()]{1,3}"
_SHAPES = re.compile(
    r"(?:(?<![0-9A-Za-z_.,/#-])(?<!\d[ (])|(?<=tel)|(?<=fax)|(?<=\d{4}/)(?=\(?0))(?:"
    rf"(?P<abroad>\+\d{{1,3}}(?:[-. ()]{{0,2}}\d){{7,12}})"
    rf"|(?P<home>0\d{{9,10}}|\(?0\d{{1,4}}{_BETWEEN}\d{{1,4}}{_BETWEEN}\d{{3,4}}|0\d{{4}} \d{{6}}"
    r"|0[5789]0[-. ]?\d{4}[-. ]?\d{4})"
    rf"|(?P<america>(?:1[-. ])?\(?[2-9]\d\d(?:\) ?|[-. ])[2-9]\d\d[-. ]\d{{4}}|[2-9]\d{{9}})"
    r")(?![0-9A-Za-z_]|[-.,]\d|/(?!\(?0\d)\d)",  # a slash stands between two numbers
    re.IGNORECASE,
)
_REGIONS = {"abroad": (None,), "home": ("JP", "GB"), "america": ("US",)}
_LENGTHS = {"home": range(10, 12), "abroad": range(9, 15), "america": range(10, 12)}
_OTHER_NUMBER = re.compile(
    r"(?:注文|伝票|会員|管理|受付|追跡|製造|商品|整理|契約|問い?合わ?せ|登録|予約|顧客|社員|学籍|ロット)"
    r"(?:番号|ID|No\.?|コード)?|ISBN|ISSN|座標|order|tracking|invoice|serial|ticket|part|account"
    r"|lot|case|reference|model",
    re.IGNORECASE,
)
_TELEPHONE = re.compile(r"電話|携帯|TEL|FAX|phone|call|dial|fax|mobile|cell|連絡", re.IGNORECASE)


def find_telephones(text: str) -> Iterator[Span]:
    """Yield numbers of Japan with or without separators, of the USA, and of all lands after a +."""
    for match in _SHAPES.finditer(text):
        before, shape = context_before(text, match.start(), 14), match.lastgroup or "home"
        called = bool(_TELEPHONE.search(before))
        if not called and (
            _OTHER_NUMBER.search(before) or (shape == "america" and match[0].isdigit())
        ):
            continue
        told = not match[0].isdigit() and (called or shape != "america")
        told = told and len(digits_of(match[0])) in _LENGTHS[shape]
        if any(_valid(match[0], region, told=told) for region in _REGIONS[shape]):
            yield Span(*match.span(), "PHONE")


def _valid(number: str, region: str | None, *, told: bool) -> bool:
    """Ask the tables; where separators tell a number already, that it could be one is enough."""
    import phonenumbers  # takes a tenth of a second, and most texts hold no number

    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return False
    check = phonenumbers.is_possible_number if told else phonenumbers.is_valid_number
    return check(parsed)
