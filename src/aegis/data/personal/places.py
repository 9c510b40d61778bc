"""Postal addresses: of Japan, in Japanese or in Latin letters, and of English-speaking lands."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aegis.data.personal.span import Span, context_before, spans

_NUMBER = r"(?:\d{1,5}|[一二三四五六七八九十百千〇]{1,5})"
# 1-9-1, 三丁目1番3号, 279番地, 北1条西2丁目; not 12号, 5-3 behind a particle, 20-30代.
_HOUSE = re.compile(
    rf"{_NUMBER}(?:(?:条[東西南北通]?|丁目|番町|番地の?|番|号|[-のノー]){_NUMBER}){{1,4}}(?:丁目|番地?|号)?"
    rf"(?![0-9年月日人円回代割個点時対件本%])|{_NUMBER}(?:丁目|番地)"
)
_BARE = re.compile(
    r"(?<=[一-鿿ァ-ヿ])\d{1,4}(?![0-9年月日人円回代割個点時対件本号条歳%.,万億千か-])"
)
_PREFECTURE = r"(?:東京都|北海道|(?:京都|大阪)府|(?:神奈川|和歌山|鹿児島|[一-鿿]{2})県)"
# Hiragana before 市 may be any words; these are names.
_KANA_TOWN = (
    "(?:つくば|さいたま|いわき|ひたちなか|あきる野|ふじみ野|かすみがうら|いすみ|みどり|あわら|たつの"
    "|うきは|うるま|えびの|むつ|つがる|にかほ|つくばみらい|みやま|みよし)市"
)
_TOWN = r"(?:[一-鿿ぁ-んァ-ヶー々]{1,6}?[市区郡町村島])"
_PLACE = re.compile(
    rf"(?:{_PREFECTURE} ?(?:{_TOWN} ?){{0,3}}"
    rf"|(?:{_KANA_TOWN}|[一-鿿ァ-ヶ々]{{1,5}}[市区郡]) ?(?:{_TOWN} ?){{0,2}})"
    r"(?![のはがをにでと、])(?P<street>[一-鿿々ァ-ヶーのがぬざりるい ]{0,16})\Z"
)
_FULL_PLACE = re.compile(
    rf"(?:{_PREFECTURE}(?:(?:{_TOWN}){{2,3}}|{_TOWN}(?=[一-鿿]))[一-鿿々ァ-ヶ]{{0,12}}"
    r"|[一-鿿]{1,4}市(?:[一-鿿]{1,4}区)?[一-鿿々]{1,14}[町通])\Z"
)
_POSTAL_CODE = re.compile(
    r"(?:〒 ?|(?:郵便番号|postal code|postcode|zip code)[ :はis]{0,5})"
    r"(?P<value>\d{3}-?\d{4})(?![0-9-])"
)
_WORD = r"[A-Z][A-Za-z'.]{0,20}(?![0-9A-Za-z])"
_KIND = (
    r"(?:(?:Street|Avenue|Road|Boulevard|Lane|Drive|Court|Square|Terrace|Place|Parkway|Highway"
    r"|Crescent|Close|Gardens|Mews|Way|Loop)\b|(?:St|Ave|Rd|Blvd|Ln|Dr|Ct|Sq|Pl|Pkwy|Hwy)\b\.?)"
)
_ENGLISH = re.compile(
    r"(?:(?:Flat|Apt|Unit|Suite)\.? [0-9A-Z]{1,5}, )?(?<![0-9A-Za-z_.,-])(?<!The )"
    rf"\d{{1,5}}(?:-\d{{1,5}}|[A-Z])? (?:(?:{_WORD}|\d{{1,3}}(?:st|nd|rd|th)) ){{1,5}}{_KIND}"
    r"(?: (?:NW|NE|SW|SE|N|S|E|W)\b\.?)?"
    r"(?:,? (?:Apt|Suite|Ste|Unit|Floor|Flat|No)\.? ?[0-9A-Z-]{1,6}\b|,? #\d{1,5})?"
    rf"(?:, {_WORD}(?: {_WORD}){{0,2}})?"
    rf"(?:,? (?:[A-Z]{{2}}|{_WORD}) \d{{5}}(?:-\d{{4}})?|, [A-Z]{{2}}\b"
    r"|,? [A-Z]{1,2}\d[A-Z0-9]? \d[A-Z]{2}\b)?"
)
_BOX = re.compile(r"\bP\.? ?O\.? Box \d{1,6}\b", re.IGNORECASE)
_ROMAN = re.compile(
    r"(?<![0-9A-Za-z_.,-])(?:[A-Z][a-z]{2,20} )?\d{1,4}(?:-\d{1,4}){1,3},? "
    r"[A-Z][A-Za-z]{1,20}(?:-[A-Za-z]{1,20})?(?:,? [A-Z][A-Za-z]{1,20}(?:-[A-Za-z]{1,20})?){1,5}"
    r"(?: \d{3}-\d{4}\b)?(?:, Japan)?"
)
_WARD = re.compile(r"-(?:ku|shi|cho|machi|gun|mura|to|ken|fu)\b|Tokyo|Osaka|Kyoto|Japan")


def find_japanese_addresses(text: str) -> Iterator[Span]:
    """Yield postal codes, and addresses down to the house; a town alone is none."""
    codes = {match.end(): _start_of_code(match) for match in _POSTAL_CODE.finditer(text)}
    for span in _japanese(text):
        before = context_before(text, span.start, 3)
        spaces = len(before) - len(before.rstrip())
        yield span._replace(start=codes.pop(span.start - spaces, span.start))
    for end, start in codes.items():
        yield Span(start, end, "ADDRESS")


def find_latin_addresses(text: str) -> Iterator[Span]:
    """Yield addresses with a house number, of Japan in Latin letters, too."""
    yield from spans(_ENGLISH, text, "ADDRESS")
    if "ox " in text or "OX " in text:
        yield from spans(_BOX, text, "ADDRESS")
    for match in _ROMAN.finditer(text) if "-" in text else ():
        if _WARD.search(match[0]):
            yield Span(*match.span(), "ADDRESS")


def _start_of_code(match: re.Match[str]) -> int:
    """Return where the postal code begins, its mark 〒 included and other labels left out."""
    return match.start() if match[0][0] == "〒" else match.start("value")


def _japanese(text: str) -> Iterator[Span]:
    """Look from each house number back to where its address begins."""
    for house, place in ((_HOUSE, _PLACE), (_BARE, _FULL_PLACE)):
        for match in house.finditer(text):
            before = context_before(text, match.start(), 40)
            found = place.search(before)
            if found:
                yield Span(match.start() - len(before) + found.start(), match.end(), "ADDRESS")
