"""Hand-made strings with their personal data marked, in two halves: one to tune on, one held back.

The half is a function of the text alone, so that nobody can choose it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

STRINGS = Path(__file__).with_name("strings.txt")
VARIANTS = Path(__file__).with_name("variants.txt")
_MARK = re.compile(r"⟦([A-Z_]+) ([^⟧]*)⟧")


@dataclass(frozen=True)
class Labelled:
    """A text, and (start, end, kind) of each piece of personal data in it."""

    text: str
    spans: tuple[tuple[int, int, str], ...]

    @property
    def language(self) -> str:
        """Return ja where there is any Japanese script, else en."""
        return "ja" if re.search(r"[\u3005-\u30ff\u3400-\u9fff]", self.text) else "en"

    @property
    def held_back(self) -> bool:
        """Return whether the string is in the half on which nothing is tuned."""
        return hashlib.sha256(self.text.encode()).digest()[0] % 2 == 1


def parse(line: str) -> Labelled:
    """Read one line of the file."""
    line = line.replace("¦", "").replace("↵", "\n")
    text, spans, at = "", [], 0
    for match in _MARK.finditer(line):
        text += line[at : match.start()]
        spans.append((len(text), len(text) + len(match[2]), match[1]))
        text, at = text + match[2], match.end()
    return Labelled(text + line[at:], tuple(spans))


def labelled_strings(path: Path = STRINGS) -> list[Labelled]:
    """Read all of a file's."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [parse(line) for line in lines if line and not line.startswith("#")]
