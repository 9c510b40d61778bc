"""A text without what hides it from a plain search: entities, percent-escapes, invisible
characters, odd widths, accents and look-alikes."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from urllib.parse import unquote

# Categories Cc (but for tabs and ends of lines), Cf and Co, and what fills a place with nothing.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_INVISIBLE = (
    "\u0600-\u0605\u0640\u06dd\u070f\u08e2\u2800\ue000-\uf8ff\ufff9-\ufffc\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000f0000-\U0010ffff"
    "\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e01ef"
)
_ACCENTS = "\u0300-\u036f\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_HIDING = re.compile(f"[{_INVISIBLE}]")
_ACCENT = re.compile(f"[{_ACCENTS}]")
_VOICING = re.compile("[\u3099\u309a]")
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
# What Japanese is ordinarily written with: punctuation of full width.
_NOT_PUNCTUATION = re.compile(
    "[^\u2018-\u2026\u3000\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+"
)
_WIDE_AFTER_WIDE = re.compile("(?<=[\uff21-\uff3a\uff41-\uff5a])[\uff01-\uff0f\uff1a-\uff20]")
_TAG_CHARACTER = re.compile("[\U000e0020-\U000e007e]")
_GREEK_AND_CYRILLIC = "\u0370-\u03ff\u0400-\u052f\u1f00-\u1fff"
_FOREIGN = re.compile(f"[{_GREEK_AND_CYRILLIC}]")
_ACCENTED_WORD = re.compile(f"[A-Za-z{_GREEK_AND_CYRILLIC}{_ACCENTS}]+")
_LOOKALIKES = str.maketrans(
    "аеорсухіјѕԁһԛԝӏвкмнтгАВЕКМНОРСТУХІЈЅ" "αοερνικτυχηωγΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "aeopcyxijsdhqwlbkmhtrABEKMHOPCTYXIJS" "aoepviktuxnwyABEZHIKMNOPTYX",
)  # fmt: skip
_LATIN_LOOKALIKES = str.maketrans(
    "ɑɡıɩʟᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢøłđħŧØŁĐ",
    "agiilabcdefghijklmnoprstuvwyzoldhtOLD",
)
_QUERY = re.compile("&(?=[A-Za-z]+[0-9]*=)")
_BOXED = {first + n: 65 + n for first in (0x1F130, 0x1F150, 0x1F170) for n in range(26)}
# Kanji that stand for the katakana of their shape, between katakana.
_KANJI_IN_KATAKANA = re.compile("(?<=[ァ-ヶー])[力口二工夕卜八一](?=[ァ-ヶー])")
_KATAKANA = str.maketrans("力口二工夕卜八一", "カロニエタトハー")
# Letters one by one: "b o m b", "b.o.m.b", "爆 弾 の".
_LETTER = r"[^\W_]"
_APART = rf"(?<!{_LETTER}){_LETTER}({{marks}}){_LETTER}(?:\1{_LETTER}){{more}}(?!{_LETTER})"
_APART_BY_MARKS, _APART_BY_SPACES = (
    re.compile(_APART.format(marks=marks, more="")) for marks in (r"[^\w\s]|_", r"\s")
)


def undisguised(text: str, *, escapes_first: bool = False) -> str:
    """Return the text for a comparison with another that went the same way, four layers deep.

    Args:
        escapes_first: an invisible character ends an entity without a semicolon; otherwise it may
            stand inside one.
    """
    steps = (_unescape, _bare) if escapes_first else (_bare, _unescape)
    return _until_stable(text, *steps)


def readable(text: str) -> str:
    """Return the text as a person reads it; ordinary Japanese writing stays as it is, but for
    letters and digits of full width."""
    return _until_stable(text, _unescape_but_queries, _visible)


def hidden_text(text: str) -> str:
    """Return what is written in Unicode's invisible tag characters."""
    return "".join(chr(ord(mark) - 0xE0000) for mark in _TAG_CHARACTER.findall(text))


def _until_stable(text: str, *steps: Callable[[str], str]) -> str:
    for _ in range(4):
        before = text
        for step in steps:
            text = step(text)
        if text == before:
            break
    return text


def _unescape(text: str) -> str:
    if "&" in text:
        text = html.unescape(text)
    return unquote(text, errors="ignore") if "%" in text else text


def _unescape_but_queries(text: str) -> str:
    """Unescape as a browser does: what is named in an address (`&copy=`) is no entity."""
    return _unescape(_QUERY.sub("&amp;", text))


def _bare(text: str) -> str:
    if text.isascii():
        return text
    return _VOICING.sub("", _plain_letters(text, everywhere=True))


def _visible(text: str) -> str:
    text = _CONTROLS.sub("", text)
    if text.isascii():
        return text
    if not _JAPANESE.search(text):
        return unicodedata.normalize("NFC", _plain_letters(text))
    text = _WIDE_AFTER_WIDE.sub(lambda mark: chr(ord(mark[0]) - 0xFEE0), text)
    return unicodedata.normalize(
        "NFC", _NOT_PUNCTUATION.sub(lambda run: _plain_letters(run[0]), text)
    )


def _plain_letters(text: str, *, everywhere: bool = False) -> str:
    plain = _HIDING.sub("", unicodedata.normalize("NFKD", text.translate(_BOXED)))
    if everywhere or not _FOREIGN.search(plain):
        plain = _ACCENT.sub("", plain).translate(_LOOKALIKES)
    else:
        plain = _without_lookalikes(plain)
    composed = unicodedata.normalize("NFC", plain.translate(_LATIN_LOOKALIKES))
    shaped = _KANJI_IN_KATAKANA.sub(lambda kanji: kanji[0].translate(_KATAKANA), composed)
    return unicodedata.normalize("NFKD", shaped)


def _without_lookalikes(text: str) -> str:
    """Replace look-alikes in words that mix scripts, and in those of look-alikes alone where others
    mix or nothing is Greek or Cyrillic in earnest; keep the accents of Greek and Cyrillic words."""
    bare = {word: _ACCENT.sub("", word) for word in _ACCENTED_WORD.findall(text)}
    plain = {word: letters.translate(_LOOKALIKES) for word, letters in bare.items()}
    foreign = {word for word, letters in bare.items() if not re.search("[A-Za-z]", letters)}
    earnest = {word for word in foreign if _FOREIGN.search(plain[word])}
    mixed = any(plain[word] != bare[word] for word in bare.keys() - foreign)
    if not mixed and (earnest or all(len(bare[word]) < 3 for word in foreign)):
        earnest = foreign
    return _ACCENTED_WORD.sub(lambda word: word[0] if word[0] in earnest else plain[word[0]], text)


def letters_joined(text: str) -> str:
    """Join letters that stand apart, one by one."""
    # A space last: letters with other marks between stand beside words of one letter, too.
    for apart in (_APART_BY_MARKS, _APART_BY_SPACES):
        if marks := {run[1] for run in apart.finditer(text)}:
            text = _joined(text, marks)
    return text


def _joined(text: str, marks: set[str]) -> str:
    """Join the letters that have one of these marks between them; several spaces become one."""
    run = _APART.format(marks=f"[{''.join(map(re.escape, sorted(marks)))}]", more="*")
    run += r"(?:\1(?=[.?!。？！]))?"
    text = re.sub(run, lambda letters: letters[0].replace(letters[1], ""), text)
    return re.sub(r"(?<=\S)[ \u3000]{2,}", " ", text)
