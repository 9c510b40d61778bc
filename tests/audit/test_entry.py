"""What a record keeps of a request."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from aegis.audit import AuditEntry
from aegis.errors import BadInputError
from aegis.protocol.thinking import PrivateText
from tests.audit.logs import WORDS, all_lines, entry


def test_no_word_and_no_plain_hash_of_one_is_kept(copy: Path) -> None:
    kept = b"".join(path.read_bytes() for path in copy.rglob("*") if path.is_file())
    texts = [
        *WORDS.values(),
        "hanako",
        *(f"{kind} {number}" for kind in ("query", "final") for number in range(1, 10)),
    ]
    for text in texts:
        if text != "ALLOW":  # a decision, and in the log as one
            assert text.encode() not in kept
        assert hashlib.sha256(text.encode()).hexdigest().encode() not in kept
    assert not any(text in repr(entry(2)) for text in texts if text != "ALLOW")
    shown = [
        json.loads(line)["commitments"] for line in all_lines(copy / "log") if b'"entry"' in line
    ]
    every = [value for commitments in shown for value in commitments.values()]
    assert len(set(every)) == len(every)  # equal texts, unlike commitments


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("request_id", "a b", "request_id must be 1 to 128"),
        ("decision", "MAYBE", "decision must be one of ALLOW"),
        ("outcome", "", "outcome must be 1 to 200 printable"),
        ("model", "a\nb", "model must be 1 to 200 printable"),
        ("sections", {"A b": PrivateText("x")}, "a section's name must be"),
    ],
)
def test_an_entry_that_cannot_be_stored_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        AuditEntry(**{**vars(entry(1)), field: value})
