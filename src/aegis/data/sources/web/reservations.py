"""What owners say against the mining of their text: noai, and the TDM Reservation Protocol."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from protego import Protego

from aegis.data.sources.web.fetch import AGENT, RefusedError

# Not to be kept, or not to be learned from; `none` is noindex and nofollow.
_RESERVED = {"noai", "noml", "notrain", "noindex", "noarchive", "none"}
_BOT = re.compile(r"\*|[a-z][\w-]*")  # and not a date, which has a colon, too
_VALUES = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}


def require_unreserved(headers: Iterable[tuple[str, str]], where: str) -> None:
    """Check the headers of an answer, or the `meta` elements of a page as such.

    Raises:
        RefusedError: if the text is reserved.
    """
    for name, value in headers:
        name = name.strip().lower()
        if name == "tdm-reservation" and value.strip() != "0":
            raise RefusedError(f"reserved: tdm-reservation in the {where}", lasting=True)
        if name in ("x-robots-tag", "robots", AGENT.lower()) and (
            words := _RESERVED.intersection(directives(value))
        ):
            raise RefusedError(f"reserved: {min(words)} in the {where}", lasting=True)


def directives(value: str) -> list[str]:
    """Return the directives of an X-Robots-Tag header, or of `meta name=robots`, that are for us.

    In the header, `bot: noai` is for that bot, and so is what follows it.
    """
    ours, words = True, []
    for part in value.lower().split(","):
        name, colon, rest = part.partition(":")
        if name.strip() in _VALUES:
            continue
        if colon and _BOT.fullmatch(name.strip()):
            ours, part = name.strip() in ("*", AGENT.lower()), rest
        if ours:
            words += re.split(r"[\s;]+", part.strip())
    return words


class TdmFile:
    """The rules of one /.well-known/tdmrep.json; any that reserves a place reserves it."""

    def __init__(self, text: str) -> None:
        rules: list[str] = []
        try:
            rows = json.loads(text) if text else []
            for row in rows if isinstance(rows, list) else [rows]:
                if not (place := row["location"]).startswith(("/", "*")):
                    raise ValueError("an address of another kind")
                if str(row["tdm-reservation"]) != "0":
                    rules.append("Disallow: " + re.sub(r"\s", "", place))
            self._unreadable = False
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._unreadable = True
        self._rules = Protego.parse("\n".join(["User-agent: *", *rules]))

    def require_unreserved(self, url: str) -> None:
        """Check one URL.

        Raises:
            RefusedError: if its text is reserved, or the file cannot be understood.
        """
        if self._unreadable:
            raise RefusedError("reserved: tdmrep.json cannot be understood")
        if not self._rules.can_fetch(url, AGENT):
            raise RefusedError("reserved: tdmrep.json")
