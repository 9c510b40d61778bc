"""Secrets: keys and tokens by their shape, passwords and codes behind their names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aegis.data.personal.span import Span, digits_of, spans

_SHAPES = re.compile(
    r"(?<![0-9A-Za-z_-])(?:sk-[A-Za-z0-9_-]{20,200}|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,255}"
    r"|github_pat_[A-Za-z0-9_]{22,255}|glpat-[A-Za-z0-9_-]{16,100}|xox[abeprs]-[A-Za-z0-9-]{10,200}"
    r"|AIza[0-9A-Za-z_-]{30,40}|[srp]k_(?:live|test)_[A-Za-z0-9]{16,200}|hf_[A-Za-z0-9]{30,60}"
    r"|npm_[A-Za-z0-9]{30,60}|GOCSPX-[A-Za-z0-9_-]{16,60}|pypi-[A-Za-z0-9_-]{50,300}"
    r"|SG\.[A-Za-z0-9_-]{16,40}\.[A-Za-z0-9_-]{16,60}"
    r"|[MN][A-Za-z0-9]{23}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,40}"
    r"|T[0-9A-Z]{8,12}/B[0-9A-Z]{8,12}/[0-9A-Za-z]{24}"
    r"|eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{0,1000})"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:[^-]|-(?!----))*"
    r"(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
)
_BEARER = re.compile(r"(?i)\b(?:bearer|basic) (?P<value>[0-9A-Za-z._~+/=-]{16,4000})")
_LOGIN = re.compile(
    r"://[^\s:/@]{0,64}:(?P<value>[^\s:/@\[\]]{1,64})@|\s-u [^\s:]{1,64}:(?P<told>[^\s\[\]]{1,64})"
)
_IS = r"[\"'」』]? ?(?:[:=]>? ?|- |(?:は、?|が|に|を) ?| (?:is|was) | )[\"'「『]?"
_PASSWORD = re.compile(
    rf"(?i)(?:(?<![0-9a-z])(?:password|passwd|pwd|pass ?phrase|pass|pw)|パス(?:ワード)?|合言葉)"
    rf"(?:{_IS}|(?<=[ド葉])[「『]?)(?P<value>[!-~]{{4,100}})"
)
_KEY = re.compile(
    r"(?i)(?:(?:api[_ -]?key|access[_ -]?key|secret[_ -]?key|auth[_ -]?token|token|secret"
    r"|private[_ -]?key)|APIキー|トークン|シークレット(?:キー)?|秘密鍵|アクセスキー)"
    rf"{_IS}(?P<value>[!-~]{{16,300}})"
)
_PIN = re.compile(
    r"(?:暗証番号|(?:認証|確認|セキュリティ|パス)コード"
    r"|(?<![A-Za-z])PIN(?: ?(?:コード|番号|code|number))?"
    r"|CV[VC]2?|OTP|(?i:pin code|passcode|(?:one-time|verification|security|2FA|MFA) code))"
    r"[\"' ]{0,2}(?:は|が|[:=]|is)?[ 「(、]{0,2}(?P<value>\d{3,8})"
    r"(?![0-9A-Za-z_桁]|[-.,]\d|\s?(?:mm|V|本))"
)
_CODE = re.compile(
    r"[()\[\]{}<>]|^(?:\$|os|env|process|self|str|None|null|true|false)\b|^(.)\1*$|(?i:your|_here)"
)
_ENDS = "\"'`.,;:)]}>"


def find_keys(text: str) -> Iterator[Span]:
    """Yield keys and tokens whose shape tells them; words with hyphens have it, too."""
    yield from spans(_SHAPES, text, "SECRET", when=lambda value: re.search("[0-9A-Z]", value))


def find_named_secrets(text: str) -> Iterator[Span]:
    """Yield passwords, codes and keys behind their names, not what code or prose has there."""
    for pattern in (_PRIVATE_KEY, _BEARER, _PIN):
        yield from spans(pattern, text, "SECRET")
    for match in _LOGIN.finditer(text):
        yield Span(*match.span(match.lastgroup or 0), "SECRET")
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
        mixed = value.lower() != value != value.upper()
        return letters >= 2 and digits >= (1 if mixed else 2)
    marks = len(value) - digits - letters
    if not assigned:
        return len(value) >= 6 and digits > 0 and letters > 0
    return len(value) >= 5 and letters > 0 and (digits > 0 or marks > 0)
