"""All detectors over one text, each only where its own marks are, and one span for one place."""

from __future__ import annotations

import re

from aegis.data.personal.credentials import find_keys, find_named_secrets
from aegis.data.personal.dates import find_birth_dates
from aegis.data.personal.folding import fold
from aegis.data.personal.names import MARKS_OF_NAMES, find_names
from aegis.data.personal.numbers import (
    find_bank_accounts,
    find_cards,
    find_documents,
    find_ibans,
    find_national_numbers,
)
from aegis.data.personal.online import find_addresses_of_machines, find_emails
from aegis.data.personal.places import find_japanese_addresses, find_latin_addresses
from aegis.data.personal.span import Detector, Span
from aegis.data.personal.telephone import find_telephones

# What a detector needs before it is worth its time: so many digits, and one of these in the text's
# lower case. The surest first: where two overlap, the first one stands.
_DETECTORS: tuple[tuple[int, str, Detector], ...] = (
    (
        0,
        r"pass|pwd|pw|key|token|secret|bearer|basic |pin(?![a-z])|://|private|cv[vc]|otp|code| -u ",
        find_named_secrets,
    ),
    (0, "パス|コード|合言葉|暗証|キー|トークン|シークレット|秘密鍵", find_named_secrets),
    (0, r"[0-9a-z_-]{16}", find_keys),
    (0, r"@|at[\])]", find_emails),
    (6, r"[a-z]{2}\d\d", find_ibans),
    (3, r"\d\.\d+\.\d|:[0-9a-f]*:", find_addresses_of_machines),
    (12, r"\d{4}", find_national_numbers),
    (14, r"\d{4}", find_cards),
    (6, r"旅券|パスポート|passport|免許|licen[cs]e|dl|[a-z9]{5}\d{6}", find_documents),
    (
        5,
        "口座|普|蓄|当座|記号|account|acct|a/c|routing|sort|checking|savings|aba|ゆうちょ|郵便局",
        find_bank_accounts,
    ),
    (9, r"\d\D{0,3}\d", find_telephones),
    (0, r"生|うまれ|バースデー|birth|born|dob|d\.o\.b", find_birth_dates),
    (0, "市|区|郡|町|村|県|都|道|府|〒|郵便", find_japanese_addresses),
    (1, "[a-z]{2}", find_latin_addresses),
    (0, MARKS_OF_NAMES, find_names),
)
_MARKED = tuple((least, re.compile(mark).search, detector) for least, mark, detector in _DETECTORS)
_PLAIN_WORD = re.compile(r"[A-Za-z_]*")


def find_personal(text: str) -> list[Span]:
    """Return where personal data and secrets are, in order and without overlaps."""
    if _PLAIN_WORD.fullmatch(text):
        return []
    view, positions = fold(text)
    lower, digits = view.lower(), sum(map(view.count, "0123456789"))
    kept, taken = [], bytearray(len(view))
    for least, marked, detector in _MARKED:
        if digits >= least and marked(lower):
            for span in detector(view):
                if taken.find(1, span.start, span.end) < 0:
                    taken[span.start : span.end] = b"\1" * (span.end - span.start)
                    kept.append(span)
    kept.sort()
    if positions is None:
        return kept
    return [Span(positions[start], positions[end - 1] + 1, kind) for start, end, kind in kept]
