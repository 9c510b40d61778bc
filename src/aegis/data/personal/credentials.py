"""Secrets: keys and tokens by their shape, passwords and codes behind their names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aegis.data.personal.span import NO_WORD_BEFORE, Span, digits_of, spans

_SHAPES = re.compile(
    r"(?<![0-9A-Za-z_-])(?:sk-[A-Za-z0-9_-]{20,200}|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,255}"
    r"|github_pat_[A-Za-z0-9_]{22,255}|glpat-[A-Za-z0-9_-]{16,100}|xox[abeprs]-[A-Za-z0-9-]{10,200}"
    r"|AIza[0-9A-Za-z_-]{30,40}|[srp]k_(?:live|test)_[A-Za-z0-9]{16,200}|hf_[A-Za-z0-9]{30,60}"
    r"|npm_[A-Za-z0-9]{30,60}|GOCSPX-[A-Za-z0-9_-]{16,60}|pypi-[A-Za-z0-9_-]{50,300}"
    r"|SG\.[A-Za-z0-9_-]{16,40}\.[A-Za-z0-9_-]{16,60}"
    r"|eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{0,1000})"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:[^-]|-(?!----))*"
    r"(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
)
_BEARER = re.compile(r"(?i)\b(?:bearer|basic) (?P<value>[0-9A-Za-z._~+/=-]{16,4000})")
_LOGIN = re.compile(r"://[^\s:/@]{1,64}:(?P<value>[^\s:/@\[\]]{1,64})@")
_IS = r"[\"'」』]? ?(?:[:=]>? ?|は、?|が|に|を| is | )[\"'「『]?"
_VALUE = r"(?P<value>[!-~]{4,200})"
_PASSWORD = re.compile(
    rf"(?i)(?:{NO_WORD_BEFORE}(?:password|passwd|pwd|pass ?phrase|pass|pw)|パスワード|合言葉)"
    rf"(?:{_IS}|[「『])(?P<value>[!-~]{{4,100}})"
)
_KEY = re.compile(
    r"(?i)(?:(?:api[_ -]?key|access[_ -]?key|secret[_ -]?key|auth[_ -]?token|token|secret"
    r"|private[_ -]?key)|APIキー|トークン|シークレット|秘密鍵|アクセスキー)"
    rf"{_IS}(?P<value>[!-~]{{16,300}})"
)
_PIN = re.compile(
    r"(?:暗証番号|\bPIN(?: ?(?:コード|番号|code|number))?)[\"' ]{0,2}(?:は|[:=]|is)? {0,2}"
    r"(?P<value>\d{4,8})(?![0-9A-Za-z_桁]|[-.,]\d)"
)
_CODE = re.compile(r"[()\[\]{}<>]|^(?:\$|os|env|process|self|str|None|null|true|false)\b|^(.)\1*$")
_ENDS = "\"'`.,;:)]}>"


def find_keys(text: str) -> Iterator[Span]:
    """Yield keys and tokens whose shape tells them."""
    yield from spans(_SHAPES, text, "SECRET")


def find_named_secrets(text: str) -> Iterator[Span]:
    """Yield passwords, codes and keys behind their names, not what code or prose has there."""
    for pattern in (_PRIVATE_KEY, _BEARER, _LOGIN, _PIN):
        yield from spans(pattern, text, "SECRET")
    for pattern, long in ((_PASSWORD, False), (_KEY, True)):
        for match in pattern.finditer(text):
            value = re.split(r"[\"'`,;]", match["value"])[0].rstrip(_ENDS)
            assigned = re.search(r"[:=「『]", text[match.start() : match.start("value")])
            if _secret(value, long=long, assigned=bool(assigned)):
                yield Span(match.start("value"), match.start("value") + len(value), "SECRET")


def _secret(value: str, *, long: bool, assigned: bool) -> bool:
    if len(value) < (16 if long else 4) or _CODE.search(value):
        return False
    digits, letters = len(digits_of(value)), sum(map(str.isalpha, value))
    if long:
        return digits >= 2 and letters >= 2
    marks = len(value) - digits - letters
    if not assigned:
        return len(value) >= 6 and digits > 0 and letters > 0
    return len(value) >= 5 and letters > 0 and (digits > 0 or marks > 0)
