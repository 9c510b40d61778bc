"""Names of people, only where an honorific, a title or a label says that it is one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aegis.data.personal.span import Span, context_before
from aegis.data.personal.surnames import SURNAMES

_LONGEST = max(map(len, SURNAMES))
_GIVEN_ENDINGS = "子美郎太奈香恵介斗菜之彦夫雄朗平助輔樹也哉紀代江乃音花那希真実織穂里"
_NO_NAME_ENDINGS = "者師員士客人長屋家民親母父兄姉妹弟娘嫁婦生店社科課部係所校業手役主"

_KANJI = r"[一-鿿々ヶ]"
_HONORIFIC = re.compile(
    r"様(?!々|子|式|相|態|変)|さま|さん(?!ご|か|ざ|まい)|氏(?!名|神|族)|くん|君(?!主|臨|が代)|ちゃん"
    r"|先生|殿(?!様|堂|下)|教授|課長|部長|社長|係長|主任|店長|医師|弁護士|選手|宛"
)
_BEFORE_HONORIFIC = re.compile(
    rf"(?:(?P<kanji>{_KANJI}{{1,6}}(?: [一-鿿々ぁ-んァ-ヶー]{{1,4}})?)"
    r"|(?P<kana>[ァ-ヶ][ァ-ヶー]{1,10}(?:[・=][ァ-ヶー]{1,10}){1,3})) ?\Z"
)
_JAPANESE_NAME = r"[一-鿿々ぁ-んァ-ヶー]{1,6}(?:[ ・][一-鿿々ぁ-んァ-ヶー]{1,8})?"
_JAPANESE_LABEL = re.compile(
    r"(?:氏 ?名|お名前|名前|姓名|[フふ][リり][ガが][ナな]|患者名|契約者名?|申請者名?"
    r"|申込者名?|名義人?|担当者名?|代表者名?)(?P<mark>[】\])」]? ?[:=] ?|[】\]] ?| |は、?)"
    rf"(?P<value>{_JAPANESE_NAME})(?=です|様|さん|と申|殿|[、。,/()（）」 \n]|\Z)"
)
_LABEL_CHARACTERS = re.compile("[名者]|フリガナ|ふりがな")
_INTRODUCED = re.compile(
    rf"(?:私|僕|俺|わたし|わたくし)?は?(?P<value>{_KANJI}{{2,5}}(?: {_KANJI}{{1,3}})?)"
    r"(?=と申し|と申す)"
)
_NO_NAME = re.compile(
    "必須|任意|未記入|記入|入力|なし|不明|非公開|匿名|秘密|未定|省略"  # behind a label
    "|お客|皆|奥|神|王|仏|氏神|殿|若|同|両|源|彼|諸"  # before an honorific
)
_ENGLISH = r"[A-Z](?:[A-Za-z]|['’-](?=[A-Za-z])){0,20}(?![A-Za-z])"
_TITLED = re.compile(
    rf"(?<![A-Za-z])(?:(?:Mr|Mrs|Ms|Dr|Prof|Mx)\.?|Miss|Professor|Doctor) "
    rf"(?P<value>{_ENGLISH}(?: {_ENGLISH}){{0,2}})"
)
_GREETED = re.compile(rf"\bDear (?P<value>{_ENGLISH}(?: {_ENGLISH})?)(?= ?[,:\n])")
_ENGLISH_LABEL = re.compile(
    r"(?<![A-Za-z_-])(?P<of>[A-Za-z]+[ _-])?[Nn]ame[\"']? ?[:=] ?[\"']?"
    rf"(?P<value>{_ENGLISH}(?: {_ENGLISH}){{0,3}})(?![A-Za-z(])"
)
_OF_A_PERSON = re.compile(
    "(?:cardholder|client|contact|customer|employee|family|first|full|given|holder|last|legal|maiden"
    "|middle|my|patient|student|your)[ _-]",
    re.IGNORECASE,
)
_SAID = re.compile(
    r"(?:\b(?:[Mm]y (?:full )?name is|[Ii] am called|[Nn]amed|[Ff]ull name) "
    rf"(?P<value>{_ENGLISH}(?: {_ENGLISH}){{0,2}}))"
)
_THIS_IS = re.compile(
    rf"\b[Tt]his is (?P<value>{_ENGLISH} {_ENGLISH})(?= (?:from|speaking|calling|here))"
)
_ROMAN = re.compile(r"(?<![A-Za-z])(?P<value>[A-Z][a-z]{1,15})-(?:san|sama|kun|chan|sensei)\b")
# In lower case.
MARKS_OF_NAMES = (
    "様|さま|さん|氏|くん|君|ちゃん|先生|殿|教授|長|主任|医師|弁護士|選手|宛|名|フリガナ|ふりがな|と申"
    r"|mrs?\b|ms\b|mx\b|dr\b|prof|miss |doctor |dear |name|amed |called |this is "
    "|-(?:san|sama|kun|chan|sensei)"
)
_NO_ENGLISH_NAME = re.compile(
    "All|America|Anonymous|Colleagues?|Customer|Diary|Editor|Everyone|False|Friends?|God|Hiring|Lord"
    "|Madam|Members|None|Null|Pac-Man|Please|Right|Sir|Team|The|True|Universe|Unknown|World"
)


def find_names(text: str) -> Iterator[Span]:
    """Yield names without the honorific, title or label that tells them."""
    if not text.isascii():
        yield from _before_honorifics(text)
        yield from _behind_labels(text)
    for pattern in (_TITLED, _GREETED, _SAID, _THIS_IS, _ROMAN, _ENGLISH_LABEL):
        for match in pattern.finditer(text):
            value = match["value"]
            of = pattern is _ENGLISH_LABEL and match["of"]
            if of and not _OF_A_PERSON.fullmatch(of):
                continue  # a file name
            if not _NO_ENGLISH_NAME.fullmatch(value.split(" ")[0]):
                yield Span(*match.span("value"), "NAME")


def _before_honorifics(text: str) -> Iterator[Span]:
    for honorific in _HONORIFIC.finditer(text):
        before = context_before(text, honorific.start(), 36)
        match = _BEFORE_HONORIFIC.search(before)
        at = honorific.start() - len(before)
        if match and match["kana"]:
            yield Span(at + match.start("kana"), at + match.end("kana"), "NAME")
        elif match and (start := _name_at_the_end(match["kanji"])) is not None:
            yield Span(at + match.start("kanji") + start, at + match.end("kanji"), "NAME")


def _behind_labels(text: str) -> Iterator[Span]:
    for match in _JAPANESE_LABEL.finditer(text) if _LABEL_CHARACTERS.search(text) else ():
        value, loose = match["value"], match["mark"].strip() in ("", "は", "は、")
        if not value or _NO_NAME.fullmatch(value):
            continue
        before = text[match.start() - 1 : match.start()]
        if before in ("社", "品", "件", "署", "ル"):
            continue
        if not loose or _begins_with_a_surname(value):
            yield Span(*match.span("value"), "NAME")
    for match in _INTRODUCED.finditer(text) if "と申" in text else ():
        yield Span(*match.span("value"), "NAME")


def _begins_with_a_surname(name: str) -> bool:
    return any(name[:length] in SURNAMES for length in range(1, _LONGEST + 1))


def _name_at_the_end(name: str) -> int | None:
    """Return where in a run of kanji a surname, with or without a given name, reaches its end."""
    if _NO_NAME.fullmatch(name) or name[-1] in _NO_NAME_ENDINGS:
        return None
    for start in range(len(name)):
        for length in range(min(_LONGEST, len(name) - start), 0, -1):
            if name[start : start + length] in SURNAMES:
                rest = name[start + length :].strip()
                if len(rest) <= 4 and (length > 1 or not rest or start == 0):
                    return start
    if len(name) <= 3 and name[-1] in _GIVEN_ENDINGS and len(name) > 1:
        return 0
    return None
