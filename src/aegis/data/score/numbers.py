"""Numbers, equations, units and dates in a text, and whether they are right.

Nothing is executed: an expression is parsed with `ast` and only + - * / and brackets are followed.
"""

from __future__ import annotations

import ast
import datetime
import functools
import itertools
import math
import operator
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

_NUMBER = r"(?<![\d.])\d+(?:\.\d+)?"
_UNIT = r"(?: ?(?!(?:is|are|equals|makes|gives)\b)[^\W\d_]{1,12})?[²³]?"
# More brackets than a few would be looked at from each of them: quadratic.
_TERM = rf"\({{0,5}}[$€£¥]?{_NUMBER}%?{_UNIT}\){{0,5}}"
_SUM = re.compile(rf"{_TERM}(?: ?[*/+\-] ?{_TERM})*")
_SIGN = re.compile(
    r" ?(?:(?P<exact>=)|≈|\b(?:is|are|equals|makes|gives)\b) ?(?P<about>約|およそ|about |roughly )?"
    r"-?[$€£¥]?"
)
_VARIABLE = re.compile(r"\d(?![mglths])[A-Za-z](?![A-Za-z])")
_GOES_ON = re.compile(r"[*/+\-^] ?$|[.A-Za-z0-9]$")  # before a sum: it is the end of a longer one
_ASKS_SUM = re.compile(
    r"\b(?:what(?:['’]s| is| does)|calculate|compute|evaluate|how much is|work out)\s[\d(]"
    r"|(?:計算|求め|いくつ|答え)|[=]\s?\??$",
    re.IGNORECASE,
)
_MAX_EXPRESSION = 200
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}

_MYRIADS = {"万": 10_000, "億": 100_000_000, "兆": 1_000_000_000_000}
_MYRIAD = re.compile(r"(\d+(?:\.\d+)?)([万億兆])(\d+)?")
_WORDS = re.compile(
    r"\b(zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b", re.IGNORECASE
)
_SMALL = _WORDS.pattern[3:-3].split("|")

_UNITS: dict[str, dict[str, float]] = {
    "length": {
        "mm millimetre millimeter ミリメートル ミリ": 0.001,
        "cm centimetre centimeter センチメートル センチ": 0.01,
        "m metre meter メートル": 1,
        "km kilometre kilometer キロメートル": 1000,
        "in inch inches インチ": 0.0254,
        "ft foot feet フィート": 0.3048,
        "mile マイル": 1609.344,
    },
    "mass": {
        "mg milligram ミリグラム": 1e-6,
        "g gram グラム": 0.001,
        "kg kilogram キログラム": 1,
        "t tonne トン": 1000,
        "lb pound ポンド": 0.45359237,
        "oz ounce オンス": 0.028349523,
    },
    "volume": {
        "ml millilitre milliliter ミリリットル": 0.001,
        "dl decilitre deciliter デシリットル": 0.1,
        "l litre liter リットル": 1,
    },
    "time": {
        "second sec 秒": 1,
        "minute min 分": 60,
        "hour 時間": 3600,
        "day 日間": 86400,
        "week 週間": 604_800,
    },
    "data": {"kb キロバイト": 1e3, "mb メガバイト": 1e6, "gb ギガバイト": 1e9},
}
_FACTORS = {
    name: (kind, factor)
    for kind, units in _UNITS.items()
    for names, factor in units.items()
    for name in names.split()
}
_FACTORS |= {f"{name}s": value for name, value in _FACTORS.items() if name.isascii()}
_NAMES = "|".join(sorted(map(re.escape, _FACTORS), key=len, reverse=True))
_QUANTITY = rf"(?P<number{{0}}>{_NUMBER})\s?(?P<unit{{0}}>{_NAMES})(?![A-Za-zァ-ヴー])"
_SAME = re.compile(
    rf"{_QUANTITY.format(1)}\s?(?:=|is|are|は|が)\s?(?:about |約)?{_QUANTITY.format(2)}",
    re.IGNORECASE,
)
_ASKED_UNIT = re.compile(
    rf"\b(?:to|into|in)\s(?P<en>{_NAMES})\b|\bhow many (?P<many>{_NAMES})\b|何(?P<ja>{_NAMES})",
    re.IGNORECASE,
)

_MONTHS = "january february march april may june july august september october november december"
_MONTH = {name[:3]: number for number, name in enumerate(_MONTHS.split(), 1)}
_MONTH_NAME = r"(Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)[a-z]*\.?"
_DATES = (
    re.compile(r"(?<!\d)(?P<y>\d{4})-(?P<m>\d{1,2})-(?P<d>\d{1,2})(?!\d)"),
    re.compile(
        r"(?:(?P<y>\d{4})年)?(?P<m>\d{1,2})月(?P<d>\d{1,2})日(?:[((](?P<w>[月火水木金土日]))?"
    ),
    re.compile(
        rf"(?:(?P<w>[MTWFS][a-z]+day),? )?\b(?P<d>\d{{1,2}})(?:st|nd|rd|th)? (?P<m>{_MONTH_NAME})"
        r"(?:,? (?P<y>\d{4}))?"
    ),
    re.compile(
        rf"(?:(?P<w>[MTWFS][a-z]+day),? )?\b(?P<m>{_MONTH_NAME}) (?P<d>\d{{1,2}})(?:st|nd|rd|th)?"
        r"\b(?!:)(?:,? (?P<y>\d{4}))?"
    ),
)
_LATER = re.compile(
    r"(?P<n>\d+) days (?P<way>after|from|before) |から(?:数えて)?(?P<n2>\d+)日(?P<way2>後|前)"
    r"|の(?P<n3>\d+)日(?P<way3>後|前)"
)
_WEEKDAYS = ("月月mon", "火火tue", "水水wed", "木木thu", "金金fri", "土土sat", "日日sun")


def plain(text: str) -> str:
    """Return the text in NFKC, with one sign for each operation and no commas in numbers."""
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = text.translate(str.maketrans({"×": "*", "÷": "/", "−": "-", "∗": "*"}))
    text = re.sub(r"(?<=\d)\s?x\s?(?=\d)", " * ", text)
    return _MYRIAD.sub(_ungrouped, text)


def numbers(text: str) -> set[float]:
    """Return every number in a text, words from zero to twelve included; 11万250 is one number."""
    text = plain(text)
    words = {float(_SMALL.index(word.lower())) for word in _WORDS.findall(text)}
    return words | {float(match) for match in re.findall(_NUMBER, text)}


@dataclass(frozen=True)
class Equation:
    """A sum in a text.

    Args:
        shown: as it stands there.
        result: what the text says that it comes to.
        value: what it does come to.
    """

    shown: str
    result: float
    value: float
    holds: bool


def equations(text: str) -> list[Equation]:
    """Return every sum with a result, in order; what cannot be read as one is passed over."""
    text = _DATES[0].sub(" ", plain(text))
    sums = list(_SUM.finditer(text))
    found = []
    for left, right in itertools.pairwise(sums):
        sign = _SIGN.fullmatch(text[left.end() : right.start()])
        value, result = evaluate(left[0]), evaluate(right[0])
        if not sign or value is None or result is None or not re.search(r"[*/+-]", left[0]):
            continue
        if _VARIABLE.search(left[0] + right[0]):
            continue
        start, end = left.start(), right.end()
        before, after = text[max(0, start - 2) : start], text[end : end + 2]
        if _GOES_ON.search(before) or re.match(r"\s?[*/+\-^]", after):
            continue
        decimals = len(re.findall(_NUMBER, right[0])[0].partition(".")[2])
        about = sign["about"] or not sign["exact"]
        allowed = max(0.5001 * 10**-decimals, (0.02 if about else 1e-9) * abs(value))
        result = math.copysign(result, value)  # the sign stands before what was matched
        shown = f"{left[0].strip()} = {right[0].strip()}"
        found.append(Equation(shown, result, value, abs(value - result) <= allowed))
    return found


def evaluate(expression: str) -> float | None:
    """Return what an expression of numbers, + - * /, % and brackets comes to, units passed over.

    None for anything else, a division by zero included.
    """
    text = re.sub(r"(?<=\d)%", "/100", plain(expression))
    text = re.sub(r"[^\d.+\-*/() ]", "", text)
    if len(text) > _MAX_EXPRESSION or "**" in text or "//" in text:
        return None
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError):
        return None


def wrong_conversions(text: str) -> list[str]:
    """Return statements that one quantity is another, where it is not, as `3 hours are 100 min`."""
    wrong = []
    for match in _SAME.finditer(plain(text)):
        kind, factor = _FACTORS[match["unit1"].lower()]
        other, second = _FACTORS[match["unit2"].lower()]
        one, two = float(match["number1"]) * factor, float(match["number2"]) * second
        if kind == other and abs(one - two) > 0.01 * abs(one):
            wrong.append(match[0])
    return wrong


def asked_quantity(prompt: str) -> tuple[float, str] | None:
    """Return the number and the unit that a prompt's own quantity comes to in the unit that it asks
    for; None where it asks for no conversion."""
    text = plain(prompt)
    if not (asked := _ASKED_UNIT.search(text)):
        return None
    unit = next(name for name in asked.groups() if name).lower()
    kind, factor = _FACTORS[unit]
    rest = text[: asked.start()] + " " + text[asked.end() :]
    given = [
        float(match["number1"]) * _FACTORS[match["unit1"].lower()][1]
        for match in re.finditer(_QUANTITY.format(1), rest, re.IGNORECASE)
        if _FACTORS[match["unit1"].lower()][0] == kind
    ]
    same_unit = any(_FACTORS[name.lower()][1] == factor for name in _units(rest))
    return (sum(given) / factor, unit) if given and not same_unit else None


def states(text: str, number: float, unit: str = "") -> bool:
    """Return whether a text holds the number, within half a percent, and beside no other unit."""
    text, wanted = plain(text), _FACTORS.get(unit.lower())
    for match in re.finditer(rf"({_NUMBER})\s?({_NAMES})?", text, re.IGNORECASE):
        fits = not wanted or not match[2] or _FACTORS[match[2].lower()] == wanted
        if fits and abs(float(match[1]) - number) <= max(1e-9, 0.005 * abs(number)):
            return True
    return False


def asked_sum(prompt: str) -> float | None:
    """Return what the one sum in a prompt comes to, as in `What is 17 × 23?`; None without one."""
    text = _DATES[0].sub(" ", plain(prompt))
    sums = [match[0] for match in _SUM.finditer(text) if re.search(r" ?[*/+] ?|\s-\s", match[0])]
    if len(sums) != 1 or not _ASKS_SUM.search(text) or _VARIABLE.search(sums[0]):
        return None
    return evaluate(sums[0])


@dataclass(frozen=True)
class Dated:
    """A date in a text; `date` is None for one that no calendar has, or with another weekday."""

    shown: str
    date: datetime.date | None
    year_given: bool


def dates(text: str) -> list[Dated]:
    """Return every date in a text, in the order of their ways of writing; without a year, 2000's,
    which has a 29 February."""
    return [_dated(match) for pattern in _DATES for match in pattern.finditer(plain(text))]


def asked_date(prompt: str) -> datetime.date | None:
    """Return the date that a prompt's `N days after DATE` comes to; None where it asks for none."""
    later = _LATER.search(plain(prompt))
    given = [each.date for each in dates(prompt) if each.date and each.year_given]
    if not later or len(given) != 1:
        return None
    days = int(next(later[name] for name in ("n", "n2", "n3") if later[name]))
    way = next(later[name] for name in ("way", "way2", "way3") if later[name])
    try:
        return given[0] + datetime.timedelta(-days if way in ("before", "前") else days)
    except OverflowError:
        return None


def _ungrouped(match: re.Match[str]) -> str:
    value = float(match[1]) * _MYRIADS[match[2]] + float(match[3] or 0)
    return f"{value:.0f}" if value.is_integer() else str(value)


def _units(text: str) -> Iterator[str]:
    for match in re.finditer(_QUANTITY.format(1), text, re.IGNORECASE):
        yield match["unit1"]


def _value(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    raise ValueError("not a sum")


def _dated(match: re.Match[str]) -> Dated:
    parts = match.groupdict()
    month = parts["m"]
    number = int(month) if month.isdigit() else _MONTH[month[:3].lower()]
    try:
        date = datetime.date(int(parts["y"] or 2000), number, int(parts["d"]))
    except ValueError:
        date = None
    day = (parts.get("w") or "").lower()
    if date and day and parts["y"] and not _is_weekday(date, day):
        date = None
    return Dated(match[0], date, bool(parts["y"]))


@functools.cache
def _is_weekday(date: datetime.date, name: str) -> bool:
    weekday = _WEEKDAYS[date.weekday()]
    return weekday.endswith(name[:3]) or name == weekday[0]
