from __future__ import annotations

from collections import Counter

from tests.data.personal.labelled import labelled_strings, parse


def test_marks_are_read() -> None:
    row = parse("a ⟦EMAIL x@¦y.jp⟧, ⟦IP ::1⟧")
    assert row.text == "a x@y.jp, ::1"
    assert row.spans == ((2, 8, "EMAIL"), (10, 13, "IP"))
    assert row.language == "en"


def test_the_strings_are_many_and_in_balance() -> None:
    rows = labelled_strings()
    assert len({row.text for row in rows}) == len(rows) >= 500
    assert not any("⟦" in row.text or "⟧" in row.text for row in rows)
    for counts in (
        Counter(row.language for row in rows),
        Counter(row.held_back for row in rows),
        Counter(bool(row.spans) for row in rows),
    ):
        assert min(counts.values()) >= 0.4 * len(rows), counts
