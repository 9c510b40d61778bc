"""What lines of records may not be is in tests/data/test_records.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.errors import DataError
from aegis.inputs.strict_json import exceeds, json_lines, parse_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), VALUES))
def test_what_is_json_is_read_as_it_was_written(value: dict[str, object]) -> None:
    for ascii_only in (False, True):
        line = json.dumps(value, ensure_ascii=ascii_only)
        try:
            line.encode()
        except UnicodeEncodeError:
            continue
        assert parse_object(line, "x") == value


@given(st.text(alphabet='{}[]":,\\ud8d0e9-. au'))
def test_any_text_is_an_object_that_can_be_written_or_told(text: str) -> None:
    try:
        value = parse_object(text, "x")
    except DataError:
        return
    assert json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def test_what_is_shared_counts_each_time() -> None:
    value: list[object] = []
    for _ in range(40):
        value = [value, value]
    assert exceeds(value, deep=100, values=1000)
    assert not exceeds([1, {"a": [2]}], deep=3, values=5)
    assert exceeds([1, {"a": [2]}], deep=2)
    assert exceeds([1, {"a": [2]}], deep=3, values=4)


def test_lines_carry_their_number_and_blank_ones_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text('\n{"a": 1}\r\n \n{"a": "\u2028"}', encoding="utf-8")
    assert [(where, parse_object(line, where)) for where, line in json_lines(path, "x")] == [
        ("x:2", {"a": 1}),
        ("x:4", {"a": "\u2028"}),
    ]
    with pytest.raises(DataError, match="cannot be read"):
        list(json_lines(tmp_path / "none", "x"))
