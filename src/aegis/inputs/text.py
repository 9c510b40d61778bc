"""Read text that people wrote: from files that end, in UTF-8 or as the file's own mark says."""

from __future__ import annotations

import codecs
import contextlib
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from aegis.errors import BadInputError

# What moves the cursor, colours or turns round what a terminal shows: control characters but line
# break and tab, marks of direction, line separators, invisible tags.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
_MARKS = {  # the longer marks first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_JAPANESE = {"cp932": "Shift_JIS", "euc_jp": "EUC-JP"}
_KANA = re.compile("[ぁ-ヺ]")


def read_text(path: Path, *, most: int, kind: str, error: type[BadInputError]) -> str:
    """Return the text of a file that a user named.

    Args:
        most: characters that it may have.
        kind: what the file should be, as in "give an existing YAML file".
        error: raised with the reason if the file is not that.
    """
    with _opened(path, str(path), kind, error) as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise error(f"{path}: longer than {most:,} characters; give an existing {kind} file")
    _require_decoded(text, str(path), error)
    return text


def read_lines(
    path: Path, *, most: int, kind: str, error: type[BadInputError], name: str
) -> Iterator[tuple[str, str | None]]:
    """Yield `NAME:number` and each line; None for one that is too long; else as `read_text`."""
    with _opened(path, name, kind, error) as file:
        number = 0
        while line := file.readline(most + 1):
            number += 1
            where = f"{name}:{number}"
            if len(line) <= most:
                _require_decoded(line, where, error)
                yield where, line
                continue
            yield where, None
            while line and not line.endswith("\n"):
                line = file.readline(most)


def has_no_end(path: Path) -> bool:
    """Return whether reading may never end: it is a device, or a pipe with a name.

    A pipe without one, as a shell makes it, has a writer that ends.
    """
    mode = path.stat().st_mode
    piped = stat.S_ISFIFO(mode) and not path.resolve().exists()
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or piped)


@contextlib.contextmanager
def _opened(path: Path, name: str, kind: str, error: type[BadInputError]) -> Iterator[TextIO]:
    """Open the file for reading; bytes that are not text become lone surrogates."""
    try:
        if has_no_end(path):
            raise error(f"{name}: is a pipe or device; give an existing {kind} file")
        encoding = "utf-8-sig"
        if not path.is_fifo():
            with path.open("rb") as file:
                start = file.read(4)
            encoding = next((_MARKS[m] for m in _MARKS if start.startswith(m)), encoding)
        with path.open(encoding=encoding, errors="surrogateescape", newline="\n") as file:
            yield file
    except UnicodeDecodeError as problem:
        raise error(f"{name}: damaged {problem.encoding}; save the file as UTF-8") from problem
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{name}: cannot be read ({reason}); give an existing {kind} file") from problem


def _require_decoded(text: str, where: str, error: type[BadInputError]) -> None:
    if "\0" in text:
        raise error(f"{where}: holds zero bytes, as UTF-16 does; save the file as UTF-8")
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        data = text.encode(errors="surrogateescape")
        guess = next((code for code in _JAPANESE if _is_japanese(data, code)), None)
        place = f"not UTF-8 at byte {len(text[: problem.start].encode())}"
        remedy = "save the file as UTF-8"
        if guess:
            place = f"{_JAPANESE[guess]}, not UTF-8"
            remedy += f" (iconv -f {_JAPANESE[guess]} -t UTF-8)"
        raise error(f"{where}: {place}; {remedy}") from problem


def _is_japanese(data: bytes, encoding: str) -> bool:
    try:
        return bool(_KANA.search(data.decode(encoding)))
    except UnicodeDecodeError:
        return False


def escaped(text: str) -> str:
    r"""Return the text with what could steer a terminal written out, as \x1b: it may come from
    anybody."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
