"""One request as the audit log is told of it, and the keyed commitments that are kept of it."""

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
    """What happened to one request. Nothing of user, query, sections and final is stored, only
    commitments to them.

    Args:
        request_id: made by the server; up to 128 letters, digits and ._:- in plain text in the log.
        user: who asked, if known.
        decision: one of the four names.
        escalated: a person has to decide.
        model: name or fingerprint of the model, plain text in the log.
        sections: private sections by name; empty where a fixed text answered.
        final: the public answer, as it leaves.
        outcome: "answered", or why not; plain text in the log, so never words of the user or of the
            model.

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
        if not _REQUEST_ID.fullmatch(self.request_id):
            raise BadInputError(
                "audit entry: request_id must be 1 to 128 letters, digits or ._:-; make one on the server"
            )
        if self.decision not in NAMES:
            raise BadInputError(
                f"audit entry: decision must be one of {', '.join(NAMES)}, got {self.decision!r}"
            )
        for name, value in (("model", self.model), ("outcome", self.outcome)):
            if not value or len(value) > _LABEL_LIMIT or not value.isprintable():
                raise BadInputError(
                    f"audit entry: {name} must be 1 to {_LABEL_LIMIT} printable characters; shorten it"
                )
        for name in self.sections:
            if not _SECTION.fullmatch(name):
                raise BadInputError(
                    "audit entry: a section's name must be 1 to 40 lower-case letters, digits or .-"
                )

    def __repr__(self) -> str:
        return f"AuditEntry(request_id={self.request_id!r}, decision={self.decision!r}, outcome={self.outcome!r}, …)"

    def texts(self) -> dict[str, str]:
        """What is committed to, by name."""
        user = {} if self.user is None else {"user": self.user}
        private = {f"think-{name}": text.reveal() for name, text in self.sections.items()}
        return {**user, "query": self.query, **private, "final": self.final}

    def fields(self, record_key: bytes) -> dict[str, Any]:
        """What is stored: plain facts, and a commitment to each text."""
        commitments = {name: commit(record_key, name, text) for name, text in self.texts().items()}
        facts = {
            "request_id": self.request_id,
            "decision": self.decision,
            "escalated": self.escalated,
        }
        return {**facts, "model": self.model, "outcome": self.outcome, "commitments": commitments}


def commit(record_key: bytes, name: str, text: str) -> str:
    """HMAC-SHA256 of the length-prefixed name and text: whoever lacks the record's key cannot test
    a guess.

    Args:
        record_key: 32 bytes, of this record alone.

    Source: RFC 2104. The key has a fixed length below the hash's block, so that the value also
    binds whoever made it.
    """
    named, said = name.encode(), text.encode("utf-8", "surrogatepass")
    message = b"%s%d:%s%d:%s" % (_PURPOSE, len(named), named, len(said), said)
    return hmac.digest(record_key, message, "sha256").hex()
