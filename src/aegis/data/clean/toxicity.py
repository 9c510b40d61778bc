"""Sexual and hateful text, found by our own terms and rules in both languages.

It serves detection and refusal alone: an item that holds such text may stay in the refusal set,
and no response that holds it stays anywhere.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_STRONG, _MILD, _ASKED, _SPOKEN_OF = 1.0, 0.5, 0.5, -0.75
_FLAGGED = 1.0

_QUOTED = re.compile(
    r"「[^」]{1,40}」|『[^』]{1,40}』|“[^”]{1,60}”|\"[^\"]{1,60}\"|\([^)]{1,40}\|[^)]{1,40}\)"
)


class _Terms:
    """Regular expressions for lower case, of which those in Latin letters are whole words."""

    def __init__(self, terms: list[str]) -> None:
        words = [term for term in terms if term.isascii() or "['’]" in term]
        others = [term for term in terms if term not in words]
        self._words = re.compile(rf"\b(?:{'|'.join(words)})\b")
        self._others = re.compile("|".join(others))

    def of(self, lower: str) -> list[str]:
        """Return all of them in a text; one in ASCII is searched for words alone."""
        found = [match[0] for match in self._words.finditer(lower)]
        others = () if lower.isascii() else self._others.finditer(lower)
        return found + [match[0] for match in others]


# One strong term is enough, or a mild one that is asked for.
_TERMS = json.loads(Path(__file__).with_name("toxic_terms.json").read_text(encoding="utf-8"))
_ASKS, _SPEAKS_OF = _Terms(_TERMS.pop("asked for")), _Terms(_TERMS.pop("spoken of"))
_COMPILED = {
    kind: (_Terms(terms["strong"]), _Terms(terms["mild"])) for kind, terms in _TERMS.items()
}


@dataclass(frozen=True)
class ToxicText:
    """What was found in a text: the kind, the first term of it, and how much speaks for it."""

    kind: str
    term: str
    weight: float


@lru_cache(64)
def find_toxic(text: str) -> ToxicText | None:
    """Return what makes the text sexual or toxic, or None.

    A strong term is enough, and so is a mild one that is asked for, or two mild ones; words of
    protection, law, medicine or teaching speak for a text about it.
    """
    plain = (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()
    for kind, (strong, mild) in _COMPILED.items():
        said = _QUOTED.sub(" ", plain) if kind == "toxic" else plain
        terms, mild_terms = strong.of(said), mild.of(said)
        if not terms and not mild_terms:
            continue
        weight = _STRONG * len(set(terms)) + _MILD * len(set(mild_terms))
        weight += _ASKED * bool(_ASKS.of(plain))
        weight += _SPOKEN_OF * len(set(_SPEAKS_OF.of(plain)))
        if weight >= _FLAGGED:
            return ToxicText(kind, (terms or mild_terms)[0], weight)
    return None
