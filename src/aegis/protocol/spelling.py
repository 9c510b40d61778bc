"""A text without what hides it from a plain search: entities, percent-escapes, invisible
characters, odd widths, accents and look-alikes."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from urllib.parse import unquote

_INVISIBLE = (
    "\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e01ef"
)
_ACCENTS = "\u0300-\u036f\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_HIDING = re.compile(f"[{_INVISIBLE}{_ACCENTS}]")
_VOICING = re.compile("[\u3099\u309a]")
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
# What Japanese is ordinarily written with: punctuation of full width.
_NOT_PUNCTUATION = re.compile(
    "[^\u2018-\u2026\u3000\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+"
)
_WIDE_AFTER_WIDE = re.compile("(?<=[\uff21-\uff3a\uff41-\uff5a])[\uff01-\uff0f\uff1a-\uff20]")
_TAG_CHARACTER = re.compile("[\U000e0020-\U000e007e]")
_LOOKALIKES = str.maketrans(
    "аеорсухіјѕԁһԛԝӏвкмнтгАВЕКМНОРСТУХІЈЅ" "αοερνικτυχηωγΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"
    "ɑɡıɩʟᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢøłđħŧØŁĐ",
    "aeopcyxijsdhqwlbkmhtrABEKMHOPCTYXIJS" "aoepviktuxnwyABEZHIKMNOPTYX"
    "agiilabcdefghijklmnoprstuvwyzoldhtOLD",
)  # fmt: skip
_BOXED = {first + n: 65 + n for first in (0x1F130, 0x1F150, 0x1F170) for n in range(26)}
# Kanji that stand for the katakana of their shape, between katakana.
_KANJI_IN_KATAKANA = re.compile("(?<=[ァ-ヶー])[力口二工夕卜八一](?=[ァ-ヶー])")
_KATAKANA = str.maketrans("力口二工夕卜八一", "カロニエタトハー")


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
    return _until_stable(text, _unescape, _visible)


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


def _bare(text: str) -> str:
    if text.isascii():
        return text
    return _VOICING.sub("", _plain_letters(text))


def _visible(text: str) -> str:
    if text.isascii():
        return text
    if not _JAPANESE.search(text):
        return unicodedata.normalize("NFC", _plain_letters(text))
    text = _WIDE_AFTER_WIDE.sub(lambda mark: chr(ord(mark[0]) - 0xFEE0), text)
    return unicodedata.normalize(
        "NFC", _NOT_PUNCTUATION.sub(lambda run: _plain_letters(run[0]), text)
    )


def _plain_letters(text: str) -> str:
    plain = _HIDING.sub("", unicodedata.normalize("NFKD", text.translate(_BOXED)))
    composed = unicodedata.normalize("NFC", plain.translate(_LOOKALIKES))
    shaped = _KANJI_IN_KATAKANA.sub(lambda kanji: kanji[0].translate(_KATAKANA), composed)
    return unicodedata.normalize("NFKD", shaped)
