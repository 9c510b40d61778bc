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

_BODY = r"(?P<{name}>(?:(?!</?(?:think-|final)).)*)"
_GRAMMAR = re.compile(
    r"\s*"
    + r"\s*".join(
        f"<{tag}>{_BODY.format(name=name)}</{tag}>"
        for tag, name in [*((f"think-{s}", f"think_{s}") for s in SECTIONS), (PUBLIC_TAG, "public")]
    )
    + r"\s*",
    re.DOTALL,
)
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
        if not isinstance(bodies, Mapping):
            raise DataError(
                f"{where}: thinking must be a mapping with the keys {', '.join(SECTIONS)}"
            )
        for key in bodies:
            if key not in SECTIONS:
                raise DataError(
                    f"{where}: thinking.{key} is not a section; use {', '.join(SECTIONS)}"
                )
        texts = {
            name: _body(bodies.get(name), field=f"thinking.{name}", where=where)
            for name in SECTIONS
        }
        return cls(
            task=PrivateText(texts["task"]),
            safety=PrivateText(texts["safety"]),
            policy=PrivateText(texts["policy"]),
            plan=PrivateText(texts["final"]),
            public=_body(public, field="final", where=where),
        )

    def bodies(self) -> dict[str, PrivateText]:
        """The sections by name, in their order."""
        return dict(zip(SECTIONS, (self.task, self.safety, self.policy, self.plan), strict=True))

    def to_record(self) -> dict[str, object]:
        """The inverse of `from_bodies`: `{"thinking": {…}, "final": …}`, for training data only."""
        return {
            "thinking": {name: text.reveal() for name, text in self.bodies().items()},
            "final": self.public,
        }


def compose(thinking: Thinking) -> str:
    """Write a response in the protocol's one form; `parse` is its inverse."""
    private = "".join(
        f"{opening(name)}{text.reveal()}{closing(name)}" for name, text in thinking.bodies().items()
    )
    return f"{private}<{PUBLIC_TAG}>{thinking.public}</{PUBLIC_TAG}>"


def parse(text: str) -> Thinking:
    """Read a whole response; anything but the exact protocol is an error that does not quote the
    text.

    Raises:
        DataError: if the text is not four sections in order followed by the public answer, each
            non-empty.
    """
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise DataError(
            "the response does not follow the thinking protocol: four sections in order, then <final>"
        )
    bodies = {name: match.group(f"think_{name}") for name in SECTIONS}
    return Thinking.from_bodies(bodies, match.group("public"), where="response")


def opening(section: str) -> str:
    return f"<think-{section}>"


def closing(section: str) -> str:
    return f"</think-{section}>"


def verdict_line(decision: Decision) -> str:
    """What the engine writes in front of the policy section's body: what was decided, so that the
    answer does it.

    Like the tags it is part of the form and not of the body: no body holds it.
    """
    return f"{decision.name}\n"


TAGS: tuple[str, ...] = (
    *(tag for section in SECTIONS for tag in (opening(section), closing(section))),
    f"<{PUBLIC_TAG}>",
    f"</{PUBLIC_TAG}>",
)
"""Every tag, opening before closing, in the order in which a response uses them."""


def looks_like_a_tag(text: str) -> bool:
    """True if the text holds anything that could pass for a protocol tag: any case, full-width,
    zero-width, entities."""
    plain = _INVISIBLE.sub("", unicodedata.normalize("NFKC", html.unescape(text)))
    return bool(_TAG_LIKE.search(plain))


def _body(found: object, *, field: str, where: str) -> str:
    if not isinstance(found, str) or not found.strip():
        raise DataError(f"{where}: {field} must be non-empty text; write the missing section")
    if any("\ud800" <= character <= "\udfff" for character in found):
        raise DataError(f"{where}: {field} holds a lone surrogate, which is not text; correct it")
    if looks_like_a_tag(found):
        raise DataError(
            f"{where}: {field} contains tag-like text; remove it, the protocol writes the tags itself"
        )
    return found.strip()
