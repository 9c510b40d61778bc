"""One request as the audit log gets it, and the keyed commitments that the log keeps of it."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aegis.errors import BadInputError
from aegis.protocol.decisions import NAMES
from aegis.protocol.thinking import PrivateText

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SECTION = re.compile(r"[a-z0-9.-]{1,40}")
_LABEL_LIMIT = 200  # characters
_PURPOSE = b"aegis audit section v1:"


@dataclass(frozen=True, repr=False)
class AuditEntry:
    """What happened to one request.

    The log keeps only commitments to user, query, sections and final.

    Args:
        request_id: made by the server; up to 128 letters, digits and ._:- in plain text in the log.
        user: who asked, if known.
        decision: one of the four names.
        escalated: a person has to decide.
        model: name or fingerprint of the model, plain text in the log.
        sections: private sections by name; empty where a fixed text answered.
        final: the public answer, as it leaves.
        outcome: "decided", or why not; plain text in the log, so no words of user or model.

    Raises:
        BadInputError: if a field cannot be stored.
    """

    request_id: str
    user: str | None
    decision: str
    escalated: bool
    model: str
    query: str
    sections: Mapping[str, PrivateText]
    final: str
    outcome: str

    def __post_init__(self) -> None:
        label = f"must be 1 to {_LABEL_LIMIT} printable characters; shorten it"
        rules = {
            "request_id must be 1 to 128 letters, digits or ._:-; make one on the server": (
                _REQUEST_ID.fullmatch(self.request_id)
            ),
            f"decision must be one of {', '.join(NAMES)}, got {self.decision!r}": (
                self.decision in NAMES
            ),
            f"model {label}": _is_label(self.model),
            f"outcome {label}": _is_label(self.outcome),
            "a section's name must be 1 to 40 lower-case letters, digits or .-": all(
                _SECTION.fullmatch(name) for name in self.sections
            ),
        }
        for rule, holds in rules.items():
            if not holds:
                raise BadInputError(f"audit entry: {rule}")

    def __repr__(self) -> str:
        facts = f"request_id={self.request_id!r}, decision={self.decision!r}"
        return f"AuditEntry({facts}, outcome={self.outcome!r}, …)"

    def fields(self, record_key: bytes) -> dict[str, Any]:
        """Return what the log stores: plain facts, and a commitment to each text."""
        texts = {"query": self.query, "final": self.final}
        texts |= {f"think-{name}": text.reveal() for name, text in self.sections.items()}
        if self.user is not None:
            texts["user"] = self.user
        plain = ("request_id", "decision", "escalated", "model", "outcome")
        facts = {name: getattr(self, name) for name in plain}
        commitments = {name: commit(record_key, name, text) for name, text in texts.items()}
        return {**facts, "commitments": commitments}


def _is_label(text: str) -> bool:
    return 0 < len(text) <= _LABEL_LIMIT and text.isprintable()


def commit(record_key: bytes, name: str, text: str) -> str:
    """Return the HMAC-SHA256 of the length-prefixed name and text.

    Who lacks the record's key cannot test a guess.

    Args:
        record_key: 32 bytes, of this record alone.

    Source: RFC 2104. The key has a fixed length below the hash's block, so that the value also
    binds whoever made it.
    """
    label, content = name.encode(), text.encode("utf-8", "surrogatepass")
    message = b"%s%d:%s%d:%s" % (_PURPOSE, len(label), label, len(content), content)
    return hmac.digest(record_key, message, "sha256").hex()
