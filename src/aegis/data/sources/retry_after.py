"""How long a server asks to wait."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_SECONDS = re.compile(r"\s*\d+(?:\.\d+)?\s*", re.ASCII)  # a fraction is no HTTP, and is sent


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds that Retry-After asks for, by a number or a date; None if it does not.

    Source: RFC 9110, 10.2.3.
    """
    value = headers.get("retry-after", "")
    try:
        if _SECONDS.fullmatch(value):
            return float(value)
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    when = when.replace(tzinfo=when.tzinfo or UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())
