"""Numbers of people: cards, My Number, passport, licence, bank account."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aegis.data.personal.check_digits import (
    IBAN_LENGTHS,
    corporate_number,
    iban,
    luhn,
    my_number,
)
from aegis.data.personal.span import (
    NO_WORD_AFTER,
    NO_WORD_BEFORE,
    Span,
    context_before,
    digits_of,
    spans,
)

_START, _END = r"(?<![0-9A-Za-z_])(?<!\d[-.,])", r"(?![0-9A-Za-z_]|[-.,]\d)"

_CARD = re.compile(
    rf"{_START}(?:\d{{4}}(?P<mark>[-. ])\d{{4}}(?P=mark)\d{{4}}(?P=mark)\d{{4}}"
    rf"|\d{{4}}[- ]\d{{6}}[- ]\d{{4,5}}|\d{{14,16}}){_END}"
)
_BRAND = re.compile(
    r"4\d{15}|5[1-5]\d{14}|2[2-7]\d{14}|35(?:2[89]|[3-8]\d)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|6(?:011|5\d\d|2\d\d|4[4-9]\d)\d{12}"
)
_NO_CARD = re.compile(
    r"(?:注文|追跡|伝票|管理|契約|シリアル|問い?合わ?せ)(?:番号|ID)?|order|tracking|serial|IMEI",
    re.IGNORECASE,
)
_CARD_LABEL = re.compile("カード|クレジット|card|visa|master|jcb|amex", re.IGNORECASE)
# Wherever it begins: letters stand right before some, and country, length and remainder tell it.
_IBAN = re.compile(r"(?=(?P<account>[A-Za-z]{2}\d{2}(?:[- ]?[0-9A-Za-z]){11,30}))")
_PERSON = re.compile(rf"{_START}\d{{4}}[-. ]?\d{{4}}[-. ]?\d{{4}}{_END}")
_PERSON_LABEL = re.compile(
    r"マイナ(?:ンバー|番号)|個人番号|my ?number|individual number", re.IGNORECASE
)
_COMPANY = re.compile(rf"{NO_WORD_BEFORE}(?:T-?)?\d-?\d{{4}}-?\d{{4}}-?\d{{4}}{_END}")
_COMPANY_LABEL = re.compile(
    r"法人番号|corporate (?:number|no\b)|houjin bangou|hojin bango|適格請求書|インボイス",
    re.IGNORECASE,
)
_PASSPORT = re.compile(
    rf"(?:旅券|パスポート|(?i:passport))[^0-9\n]{{0,25}}?{NO_WORD_BEFORE}"
    r"(?P<value>[A-Za-z]{2} ?\d{7}|[A-Z]\d{8}|[A-Z]\d{7}[A-Z]?|[A-Z]\d\d[A-Z]\d\d[A-Z]\d\d|\d{9})"
    rf"{NO_WORD_AFTER}"
)
_LICENCE = re.compile(
    r"免許(?:証?の?番号|証)(?:No\.?|[^0-9A-Za-z第]){0,8}"
    rf"(?P<value>第?\d{{4}}[- ]?\d{{4}}[- ]?\d{{4}}号?){NO_WORD_AFTER}"
)
_LICENCE_ENGLISH = re.compile(
    r"(?:(?i:driver[’']?s?|driving) (?i:licen[cs]e)|\bDL)(?: (?i:number|no|id|is)\b\.?| ?#){0,3}"
    rf"[: (]{{1,3}}(?P<value>[A-Z0-9][A-Z0-9-]{{5,18}}[A-Z0-9]){NO_WORD_AFTER}"
    # Of Great Britain: five letters of the surname, date of birth, initials.
    rf"|{NO_WORD_BEFORE}(?P<british>[A-Z9]{{5}}\d{{6}}[A-Z9]{{2}}[0-9A-Z]{{3}}){NO_WORD_AFTER}"
)
_NOT_COUNTED = r"(?![0-9A-Za-z_]|[-.,]\d|[円人件個回年%万億])"
_POST_BANK = re.compile(
    r"(?:ゆうちょ|郵便局|記号)[^0-9]{0,12}(?P<mark>1\d{4})(?:[^0-9]{0,3}番号[^0-9]{0,2}|[- ])"
    r"(?P<number>\d{6,8})(?!\d)"
)
_BANK = (
    re.compile(
        r"(?:口座(?:の?番号)?|(?:普通|当座|貯蓄)預金|普通|当座"
        r"|(?:支店|本店|銀行|金庫|組合|営業部) ?[(（]?(?:普通|当座|普))"
        r"(?:口座|預金)?(?:番号|No\.?)?[() :=はのが番号、【】「]{0,4}"
        r"(?:[(]?普通[)]?[の ]?(?:No\.)?)?"
        rf"(?<![はがでに]普通)(?P<value>\d{{7}}){_NOT_COUNTED}"
    ),
    re.compile(rf"{_START}(?P<value>\d{{7}}) ?[(（](?:普通|当座)"),
    re.compile(
        r"(?i)\b(?:(?:account|acct|a/c)\.?|account number at [a-z ]{2,20}|routing|ABA"
        r"|(?:checking|savings)(?=:))(?:[ _]?(?:number|no\.?|num|#|is|:|=)){0,3} ?"
        rf"(?P<value>\d{{6,14}}|\d{{3,6}}(?:[- ]\d{{2,6}}){{1,3}}){_END}"
    ),
    re.compile(rf"(?i)\bsort code(?: is|:)? (?P<value>\d\d-?\d\d-?\d\d){_END}"),
)


def find_cards(text: str) -> Iterator[Span]:
    """Yield payment cards by brand and Luhn, unless something says that it is another number."""

    for span in spans(_CARD, text, "CARD"):
        digits = digits_of(text[span.start : span.end])
        if not _BRAND.fullmatch(digits) or not luhn(digits):
            continue
        before = context_before(text, span.start, 14)
        if _CARD_LABEL.search(before) or not _NO_CARD.search(before):
            yield span


def find_ibans(text: str) -> Iterator[Span]:
    """Yield international account numbers by country, length and remainder."""
    for match in _IBAN.finditer(text):
        account = match["account"]
        length = IBAN_LENGTHS.get(account[:2].upper(), 99)
        places = [at for at, character in enumerate(account) if character not in " -"]
        if len(places) < length or not iban(_letters(account)[:length].upper()):
            continue
        end = match.start() + places[length - 1] + 1
        if not text[end : end + 1].isalnum() or not text[end : end + 1].isascii():
            yield Span(match.start(), end, "IBAN")


def _letters(text: str) -> str:
    return text.replace(" ", "").replace("-", "")


def find_national_numbers(text: str) -> Iterator[Span]:
    """Yield My Numbers and corporate numbers: the check digit holds and the words say so."""
    if _PERSON_LABEL.search(text):
        for span in spans(
            _PERSON, text, "MY_NUMBER", when=lambda value: my_number(digits_of(value))
        ):
            if _PERSON_LABEL.search(_around(text, span)):
                yield span
    for span in spans(_COMPANY, text, "CORPORATE_NUMBER"):
        value = text[span.start : span.end]
        labelled = value[0] == "T" or _COMPANY_LABEL.search(_around(text, span))
        if labelled and corporate_number(digits_of(value)):
            yield span


def _around(text: str, span: Span) -> str:
    return context_before(text, span.start) + text[span.end : span.end + 16]


def find_documents(text: str) -> Iterator[Span]:
    """Yield numbers of passports and driving licences behind their names."""
    yield from spans(_PASSPORT, text, "PASSPORT")
    yield from spans(_LICENCE, text, "LICENCE")
    for match in _LICENCE_ENGLISH.finditer(text):
        part = match.lastgroup or 0
        if len(digits_of(match[part])) >= 5:
            yield Span(*match.span(part), "LICENCE")


def find_bank_accounts(text: str) -> Iterator[Span]:
    """Yield account numbers behind their names."""
    for match in _POST_BANK.finditer(text):
        parts = ("mark", "number")
        if match.end("mark") + 1 == match.start("number"):
            yield Span(match.start("mark"), match.end(), "BANK_ACCOUNT")
        else:
            yield from (Span(*match.span(part), "BANK_ACCOUNT") for part in parts)
    for pattern in _BANK:
        yield from spans(pattern, text, "BANK_ACCOUNT")
