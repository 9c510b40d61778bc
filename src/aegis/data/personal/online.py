"""E-mail and IP addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from aegis.data.personal.span import Span, context_before

_AT = re.compile(r" ?(?:@|[\[(]at[\])]) ?", re.IGNORECASE)
_LOCAL = re.compile(r"[A-Za-z0-9À-ɏ_][A-Za-z0-9À-ɏ._%+'-]{0,63}\Z")
_DOMAIN = re.compile(
    r"(?:[0-9A-Za-zぁ-ヿ一-鿿-]{1,63}(?:\.|[\[(]dot[\])])){1,6}[A-Za-z]{2,24}(?![0-9A-Za-z])", re.I
)

_V4 = re.compile(r"(?<![0-9A-Za-z_.])(?:\d{1,3}\.){3}\d{1,3}(?![0-9A-Za-z_]|\.[0-9A-Za-z])")
_VERSION_BEFORE = re.compile(
    r"(?:\bv|\bver\.?|version|release|build|\brev\.?|firmware|section|chapter|§|\boid|==|第"
    r"|バージョン|リリース|ビルド|ファームウェア|[A-Za-z]/)[ :は]{0,2}\Z",
    re.IGNORECASE,
)
_VERSION_AFTER = re.compile(r"\s?[節項版章条]")
_NETWORK = re.compile(
    r"\bIP|DNS|resolver|address|host|server|ping|from|client|gateway|://|アドレス|サーバ|ホスト|接続|通信",
    re.IGNORECASE,
)
_V6 = re.compile(
    r"(?<![0-9A-Za-z:.])(?:[0-9A-Fa-f]{1,4}:|:(?=:)|(?<=:):){2,8}"
    r"(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{1,4})?(?![0-9A-Za-z_])"
)


def find_emails(text: str) -> Iterator[Span]:
    """Yield addresses with @, [at] or (at); a space beside it does no harm."""
    for at in _AT.finditer(text):
        before = context_before(text, at.start(), 64)
        local, domain = _LOCAL.search(before), _DOMAIN.match(text, at.end())
        if not local or not domain:
            continue
        if local[0] == "git" and text[domain.end() : domain.end() + 1] == ":":
            continue  # git@github.com:owner/name
        yield Span(at.start() - len(local[0]), domain.end(), "EMAIL")


def find_addresses_of_machines(text: str) -> Iterator[Span]:
    """Yield IPv4 and IPv6 addresses but loopback, unspecified and netmasks."""
    for match in _V4.finditer(text) if text.count(".") >= 3 else ():
        before = context_before(text, match.start(), 20)
        if _VERSION_BEFORE.search(before) or _VERSION_AFTER.match(text, match.end()):
            continue
        around = before + text[match.end() : match.end() + 20]
        if len(match[0]) == 7 and not _NETWORK.search(around):
            continue  # 3.2.1.4 is a section more often than a machine
        if _personal(match[0]):
            yield Span(*match.span(), "IP")
    for match in _V6.finditer(text) if text.count(":") >= 2 else ():
        address = match[0] if match[0].endswith("::") else match[0].rstrip(":")
        told = re.search(r"\d", address) and len(address) >= 6  # a::b is C++
        if told and _personal(address):
            yield Span(match.start(), match.start() + len(address), "IP")


def _personal(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    netmask = address.startswith("255.")
    return not (parsed.is_loopback or parsed.is_unspecified or netmask)
