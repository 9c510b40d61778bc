"""What robots.txt says to us, by RFC 9309."""

from __future__ import annotations

import re
from urllib.parse import quote

from protego import Protego

from aegis.data.sources.web.fetch import AGENT

MOST_BYTES = 500 << 10
_LINE_END = re.compile("\r\n|\r|\n")
_ODD_LINE_END = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")  # of Python, not of the RFC
_AGENT = re.compile(r"\s*user[- ]?agent(?:\s*:|\s)\s*([^#]*)", re.IGNORECASE)
_RULE = re.compile(r"\s*(?:allow|d\w{4,9}w)(?:\s*:|\s)", re.IGNORECASE)  # dissallow counts, too
_SLASH = re.compile("%2f", re.IGNORECASE)
_NO_TRAINING = re.compile(
    r"\s*content-(?:signal|usage)\s*:.*\b(?:ai-train\s*=\s*no?|train-ai\s*=\s*no?|ai\s*=\s*no?)\b",
    re.IGNORECASE,
)


class Robots:
    """The rules of one robots.txt for our product token.

    Protego matches the patterns. What it sees otherwise than the RFC is written out for it: a token
    counts as a whole (it takes `User-agent: a` for every name with an a), records that are no rules
    end no group, and a slash in a query is the same escaped or not.

    Args:
        body: the file; what is behind its first 500 KiB, or in a line cut there, does not count.
    """

    def __init__(self, body: bytes, agent: str = AGENT) -> None:
        if len(body) >= MOST_BYTES:
            body = body[:MOST_BYTES]
            body = body[: max(body.rfind(b"\n"), body.rfind(b"\r")) + 1]
        lines = [_prepared(line, agent) for line in _LINE_END.split(_decoded(body))]
        is_rule = [bool(_AGENT.match(line) or _RULE.match(line)) for line in lines]
        rules = [line for line, counts in zip(lines, is_rule, strict=True) if counts]
        self._agent = agent
        self._rules = Protego.parse("\n".join(rule for line in rules for rule in _spellings(line)))
        everything = Protego.parse("\n".join(lines))
        rate = everything.request_rate(agent)
        delays = [everything.crawl_delay(agent) or 0.0, rate.seconds / rate.requests if rate else 0]
        self.delay_s = max(delays)
        signals = (line.strip() for line in lines if _NO_TRAINING.match(line))
        self.reservation = next(signals, None)

    def allows(self, url: str) -> bool:
        """Return whether we may ask for the URL."""
        path, mark, query = url.partition("?")
        return self._rules.can_fetch(path + mark + _SLASH.sub("/", query), self._agent)


def _decoded(body: bytes) -> str:
    if body.startswith((b"\xff\xfe", b"\xfe\xff")):
        return body.decode("utf-16", "replace")
    return body.decode("utf-8-sig", "replace")


def _prepared(line: str, agent: str) -> str:
    line = _ODD_LINE_END.sub(lambda mark: quote(mark[0]), line)
    if not (match := _AGENT.match(line)):
        return line
    value = match[1].strip()
    token = re.match(r"[A-Za-z_-]*", value)
    if value.split()[:1] == ["*"]:
        return "User-agent: *"
    is_ours = token is not None and token[0].lower() == agent.lower()
    return f"User-agent: {agent if is_ours else '(another)'}"


def _spellings(rule: str) -> list[str]:
    """Return the rule, and once more with the slashes of a query unescaped."""
    match = re.match(r"[^?*]*[?*]", rule)
    head = match[0] if match else rule
    plain = head + _SLASH.sub("/", rule[len(head) :])
    return list(dict.fromkeys((rule, plain)))
