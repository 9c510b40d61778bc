"""Tell which encoding a text file is in, also a short Japanese one, and read its lines."""

from __future__ import annotations

import codecs
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

NAMES = {
    "utf-8": "UTF-8",
    "utf-8-sig": "UTF-8 with BOM",
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16 without BOM",
    "utf-16-be": "UTF-16 without BOM",
    "utf-32": "UTF-32",
    "cp932": "Shift_JIS",
    "euc_jp": "EUC-JP",
    "iso2022_jp": "ISO-2022-JP",
}
_MARKS = {  # the longer marks first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BY_BYTES = ("utf-8", "cp932", "euc_jp")  # a line break is one byte, and stands for nothing else
_SAMPLE = 1 << 20
_NON_ASCII = re.compile(rb"[\x80-\xff]")
_KANA = re.compile("[ぁ-んァ-ヶー]")
_PUNCTUATION = re.compile("[、。「」『』・！？：（）～　０-９Ａ-Ｚａ-ｚ]")
_KANJI = re.compile("[一-龥]")
_KANJI_RUN = re.compile("[一-龥]{2}")
_USUAL = re.compile(
    r"[\t\r\n\x20-\x7e\xa0-\u024f\u2010-\u27bf\u3000-\u30ff一-龥\uff00-\uff9f\U0001f000-\U0001faff]"
)
_UNLIKELY = re.compile("[\ufffd\uff61-\uff9f\ue000-\uf8ff\x80-\x9f]")  # half-width kana and worse


@dataclass(frozen=True)
class EncodedLine:
    """A line of a file, and what makes it unusable, if anything does."""

    where: str
    text: str
    problem: str = ""


def detect_encoding(path: Path) -> str:
    """Return the name by which Python knows the encoding of a file that can be read twice.

    A mark at the start decides. Else UTF-16 shows by its zero bytes or kana, ISO-2022-JP by its
    escapes, UTF-8 by being valid; between Shift_JIS and EUC-JP decides which reading is Japanese.
    What is none of them is UTF-8, damaged.
    """
    with path.open("rb") as file:
        start = file.read(_SAMPLE)
        for mark, encoding in _MARKS.items():
            if start.startswith(mark):
                return encoding
        if wide := _utf16_without_mark(start[: 1 << 16]):
            return wide
        if any(escape in start for escape in (b"\x1b$B", b"\x1b$@")):
            return "iso2022_jp"
        file.seek(0)
        position = _first_not_utf8(file)
        if position is None:
            return "utf-8"
        file.seek(max(0, position - _SAMPLE // 16))
        return _by_lines(file.read(_SAMPLE))


def encoded_lines(path: Path, encoding: str, *, name: str, most: int) -> Iterator[EncodedLine]:
    """Yield `NAME:number`, text and problem of each line that is not blank.

    A line longer than `most` characters, or in another encoding than the file, is told, and the
    rest is read on.
    """
    if encoding.removesuffix("-sig") not in _BY_BYTES:
        with path.open(encoding=encoding, errors="replace", newline="\n") as text_file:
            yield from _wide_lines(text_file, encoding, name, most)
        return
    with path.open("rb") as file:
        if encoding == "utf-8-sig":
            file.read(len(codecs.BOM_UTF8))
        number, limit = 0, most * 4
        while data := file.readline(limit + 1):
            number += 1
            where, whole = f"{name}:{number}", len(data) <= limit
            while len(data) > limit and not data.endswith(b"\n"):
                data = file.readline(limit + 1) or b"\n"
                whole = False
            if not whole:
                yield EncodedLine(where, "", _too_long(most))
            elif data.strip():
                yield _decoded(data, encoding.removesuffix("-sig"), where, most)


def _too_long(most: int) -> str:
    return f"longer than {most:,} characters; shorten the line"


def _wide_lines(
    file: io.TextIOWrapper, encoding: str, name: str, most: int
) -> Iterator[EncodedLine]:
    number = 0
    while line := file.readline(most + 1):
        number += 1
        where, whole = f"{name}:{number}", len(line) <= most
        while len(line) > most and not line.endswith("\n"):
            line = file.readline(most + 1) or "\n"
            whole = False
        if not whole:
            yield EncodedLine(where, "", _too_long(most))
        elif "\ufffd" in line:
            yield EncodedLine(where, line, f"damaged {NAMES[encoding]}; save the file as UTF-8")
        elif line.strip("\ufeff \t\r\n"):
            yield EncodedLine(where, line)


def _decoded(data: bytes, encoding: str, where: str, most: int) -> EncodedLine:
    best, problem = _best_reading(data, encoding), ""
    text = data.decode(best, errors="backslashreplace")  # a byte that is none stays told
    if best != encoding:
        problem = f"{NAMES[best]}, not {NAMES[encoding]}; save the whole file in one encoding"
    else:
        try:
            data.decode(encoding)
        except UnicodeDecodeError as error:
            place = f"not {NAMES[encoding]} at byte {error.start}"
            problem = f"{place}; save the whole file in one encoding"
    if "\0" in text:
        problem = problem or "holds zero bytes; save the file as UTF-8"
    if len(text) > most:
        return EncodedLine(where, "", _too_long(most))
    return EncodedLine(where, text, problem)


def _best_reading(data: bytes, encoding: str) -> str:
    """Return the file's encoding, unless another is plainly the one that this line is in."""
    if data.isascii():
        return encoding
    readings = dict[str, str]()
    for name in _BY_BYTES:
        try:
            readings[name] = data.decode(name)
        except UnicodeDecodeError:
            continue
    if encoding == "utf-8" and encoding in readings:
        return encoding
    own = _likeness(readings[encoding]) if encoding in readings else -1
    best, most = encoding, max(0, own)
    for name, text in readings.items():
        plain = own < 0 if name == "utf-8" or encoding not in readings else _KANA.search(text)
        if name != encoding and plain and _is_japanese(text) and _likeness(text) > most:
            best, most = name, _likeness(text)
    return "utf-8" if best == encoding and own < 0 and "utf-8" in readings else best


def _by_lines(sample: bytes) -> str:
    """Return the encoding of most of what is not ASCII."""
    votes = Counter[str]()
    for line in sample.split(b"\n"):
        if weight := len(_NON_ASCII.findall(line)):
            votes[_best_reading(line, "utf-8")] += weight
    return votes.most_common(1)[0][0] if votes else "utf-8"


def _is_japanese(text: str) -> bool:
    return bool(_KANA.search(text) or _KANJI_RUN.search(text))


def _likeness(text: str) -> int:
    """Return how much a reading looks like Japanese; below 0, like a mistake."""
    good = 2 * len(_KANA.findall(text)) + len(_KANJI.findall(text))
    return good + len(_PUNCTUATION.findall(text)) - 3 * len(_UNLIKELY.findall(text))


def _utf16_without_mark(start: bytes) -> str | None:
    """Return which order of bytes makes UTF-16 of it; ASCII in UTF-16 is half zeros, and text of
    one byte a character that has none hardly ever reads as kana."""
    least_kana = 0.3 if b"\0" not in start else 0.0
    for encoding in ("utf-16-le", "utf-16-be"):
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(start)
        except UnicodeDecodeError:
            continue
        kana, usual = len(_KANA.findall(text)), len(_USUAL.findall(text))
        if text and kana >= least_kana * len(text) and usual >= 0.95 * len(text):
            return encoding
    return None


def _first_not_utf8(file: BinaryIO) -> int | None:
    """Return about where the first byte stands that is not UTF-8; None if all are."""
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    while chunk := file.read(_SAMPLE):
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError as error:
            return position + error.start
        position += len(chunk)
    return None if decoder.getstate()[0] == b"" else position
