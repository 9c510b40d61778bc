from __future__ import annotations

from datetime import UTC, datetime

from aegis.data.sources.retry_after import retry_after


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
    values = {
        "Mon, 30 Nov 2026 12:00:30 GMT": 30.0,
        "Mon, 30 Nov 2026 11:00:00 GMT": 0.0,
        "Mon, 30 Nov 99999 11:00:00 GMT": None,
        "5": 5.0,
        "0.5": 0.5,
        **dict.fromkeys(("-1", "soon", "", "nan", "1e3", "\u0665"), None),
    }
    assert {value: retry_after({"retry-after": value}, now) for value in values} == values
    assert retry_after({}) is None
