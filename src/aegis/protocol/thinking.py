"""The quadruple-thinking protocol: four private sections, then the public answer.

This is the only module that knows what is private. Private text is held in `PrivateText`, whose
repr is redacted, so that it cannot slip into a log or an error message.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from aegis.errors import DataError
from aegis.protocol.decisions import Decision

SECTIONS: tuple[str, ...] = ("task", "safety", "policy", "final")
VERDICT_SECTION = SECTIONS.index("policy")
PUBLIC_TAG = "final"

_BODY = r"((?:(?!</?(?:think-|final)).)*)"
_PARTS = [f"<{tag}>{_BODY}</{tag}>" for tag in (*(f"think-{s}" for s in SECTIONS), PUBLIC_TAG)]
_GRAMMAR = re.compile(r"\s*".join(["", *_PARTS, ""]), re.DOTALL)
_TAG_LIKE = re.compile(r"<\s*/?\s*(?:think\s*-|final)", re.IGNORECASE)
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")


@dataclass(frozen=True, repr=False)
class PrivateText:
    """Text that never leaves the process; `reveal` is the one way to read it."""

    _text: str

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"PrivateText(<{len(self._text)} characters withheld>)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)


@dataclass(frozen=True)
class Thinking:
    """The four private sections and the public answer of one response."""

    task: PrivateText
    safety: PrivateText
    policy: PrivateText
    plan: PrivateText  # the section <think-final>
    public: str

    @classmethod
    def from_bodies(cls, bodies: Mapping[str, object], public: object, *, where: str) -> Thinking:
        """Build from a record's `thinking` mapping and `final`.

        Raises:
            DataError: if a section is missing, unknown, empty, not text, or contains tag-like text.
        """
        names = ", ".join(SECTIONS)
        if not isinstance(bodies, Mapping):
            raise DataError(f"{where}: thinking must be a mapping with the keys {names}")
        for key in bodies:
            if key not in SECTIONS:
                raise DataError(f"{where}: thinking.{key} is not a section; use {names}")
        private = [_body(bodies.get(name), f"thinking.{name}", where) for name in SECTIONS]
        return cls(*map(PrivateText, private), public=_body(public, "final", where))

    def bodies(self) -> dict[str, PrivateText]:
        """Return the sections by name, in their order."""
        return dict(zip(SECTIONS, (self.task, self.safety, self.policy, self.plan), strict=True))

    def to_record(self) -> dict[str, object]:
        """Undo `from_bodies`: `{"thinking": {…}, "final": …}`, for training data only."""
        texts = {name: text.reveal() for name, text in self.bodies().items()}
        return {"thinking": texts, "final": self.public}


def compose(thinking: Thinking) -> str:
    """Write a response in the protocol's one form; `parse` is its inverse."""
    private = "".join(
        f"{opening(name)}{text.reveal()}{closing(name)}" for name, text in thinking.bodies().items()
    )
    return f"{private}<{PUBLIC_TAG}>{thinking.public}</{PUBLIC_TAG}>"


def parse(text: str) -> Thinking:
    """Read a whole response.

    Raises:
        DataError: if the text is not exactly four sections in order and the public answer, each
            non-empty; it does not quote the text.
    """
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise DataError(
            "the response does not follow the thinking protocol: "
            "four sections in order, then <final>"
        )
    *private, public = match.groups()
    bodies = dict(zip(SECTIONS, private, strict=True))
    return Thinking.from_bodies(bodies, public, where="response")


def opening(section: str) -> str:
    return f"<think-{section}>"


def closing(section: str) -> str:
    return f"</think-{section}>"


def verdict_line(decision: Decision) -> str:
    """Return what the engine writes in front of the policy section's body: what was decided, so
    that the answer does it. Like the tags it belongs to the form: no body holds it."""
    return f"{decision.name}\n"


TAGS: tuple[str, ...] = (
    *(tag for section in SECTIONS for tag in (opening(section), closing(section))),
    f"<{PUBLIC_TAG}>",
    f"</{PUBLIC_TAG}>",
)
"""Every tag, opening before closing, in the order in which a response uses them."""


def looks_like_a_tag(text: str) -> bool:
    """Check for anything that could pass for a protocol tag: any case, full-width, zero-width,
    entities."""
    plain = _INVISIBLE.sub("", unicodedata.normalize("NFKC", html.unescape(text)))
    return bool(_TAG_LIKE.search(plain))


def _body(text: object, field: str, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: {field} must be non-empty text; write the missing section")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{where}: {field} holds a lone surrogate, which is not text; correct it")
    if looks_like_a_tag(text):
        raise DataError(
            f"{where}: {field} contains tag-like text; remove it, "
            "the protocol writes the tags itself"
        )
    return text.strip()
