from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aegis.data.records import (
    Provenance,
    parse_item,
    parse_pair,
    parse_plain,
    parse_record,
    read_jsonl,
    read_rows,
    write_jsonl,
)
from aegis.errors import DataError

GOOD: dict[str, Any] = {"prompt": "How do I kill a Python process?", "decision": "ALLOW"}
THINKING = {
    "task": "ending a process",
    "safety": "nobody",
    "policy": "ALLOW",
    "final": "name the command",
}
FROM = {"provenance": {"url": "https://example.org/", "licence": "CC-BY-4.0"}}
SIDE = {"decision": "ALLOW", "thinking": THINKING, "final": "Use kill."}


def test_a_short_record_gets_its_defaults() -> None:
    record = parse_record(GOOD, where="f:1")
    assert (record.id, record.language, record.domain, record.thinking) == (
        "f:1",
        "en",
        "general",
        None,
    )
    assert parse_record({**GOOD, "prompt": "時間は？"}, where="f:1").language == "ja"


def test_fields_of_the_users_own_are_kept() -> None:
    record = parse_record({**GOOD, "risk_area": {"a": [3]}}, where="f:1")
    assert record.extra == {"risk_area": {"a": [3]}}
    assert record.to_json()["risk_area"] == {"a": [3]}
    assert "extra" not in record.to_json()
    assert hash(record) == hash(parse_record(GOOD, where="f:1"))


def test_records_and_pairs_survive_a_round_trip(tmp_path: Path) -> None:
    record = parse_record(
        {**GOOD, "thinking": THINKING, "final": "Use kill.", "contrast_of": "x", "attack": "role"},
        where="f:1",
    )
    parsed = {"provenance": Provenance(model="m", cost=0.5, time="2026-11-30T12:00:00Z")}
    refused = {**SIDE, "decision": "REFUSE", "thinking": {**THINKING, "policy": "by the rule"}}
    pair = parse_pair({"prompt": "p", "chosen": SIDE, "rejected": refused}, where="f:2")
    plain = parse_plain({"text": "t", "response": "r", "note": 1, **FROM}, where="f:3")
    items = [record, pair, plain, replace(record, **parsed), replace(pair, **parsed)]
    write_jsonl(tmp_path / "x.jsonl", items)
    assert read_jsonl(tmp_path / "x.jsonl", parse_item)[0] == items


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        ("wiki", "f:1: provenance: Input should be a dictionary"),
        ({"modell": "x"}, "f:1: provenance.modell: Unexpected keyword"),
        ({"cost": "much"}, "f:1: provenance.cost: Input should be a valid number"),
        ({"cost": float("inf")}, "f:1: provenance.cost: Input should be a finite number"),
    ],
)
def test_a_provenance_that_is_none_is_told(provenance: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_record({**GOOD, "provenance": provenance}, where="f:1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must be a JSON object, got list"),
        ("[" * 100_000, "not valid JSON"),
        ('{"decision": "ALLOW"}', "prompt must be non-empty text, got None"),
        ('{"prompt": " ", "decision": "ALLOW"}', "prompt must be non-empty"),
        (
            '{"prompt": "x", "decision": "allow"}',
            "'allow' is not one of ALLOW, ESCALATION, DENY, REFUSE",
        ),
        ('{"prompt": "x"}', "decision is missing; give one of ALLOW, ESCALATION, DENY, REFUSE"),
        ('{"prompt": "x", "decision": ["ALLOW"]}', "is not one of"),
        (
            '{"prompt": "x", "decision": "ALLOW", "langauge": "en"}',
            "'langauge' is not a field; did you mean 'language'",
        ),
        (
            '{"prompt": "x", "decision": "ALLOW", "language": "fr"}',
            "language must be one of ja, en",
        ),
        ('{"prompt": "x", "decision": "ALLOW", "final": "y"}', "belong together"),
        ('{"prompt": "\\ud800", "decision": "ALLOW"}', "lone surrogate"),
        # what another reader would lose in silence, in fields that nobody reads, too
        (
            '{"prompt": "x", "decision": "REFUSE", "decision": "ALLOW"}',
            "'decision' is given twice; keep one",
        ),
        ('{"prompt": "x", "decision": "ALLOW", "a": {"b": 1, "b": 2}}', "'b' is given twice"),
        ('{"prompt": "x", "decision": "ALLOW", "a": ["\\ud83d"]}', "'a' holds a lone surrogate"),
        ('{"prompt": "x", "decision": "ALLOW", "\\udc00": 1}', "holds a lone surrogate"),
        ('{"prompt": "x", "decision": "ALLOW", "a": -1e999}', "-1e999 is not a finite number"),
        ('{"prompt": "x", "decision": "ALLOW", "a": NaN}', "NaN is not a finite number"),
        (f'{{"prompt": "x", "decision": "ALLOW", "a": {"9" * 5000}}}', "too many digits"),
        (
            f'{{"prompt": "x", "decision": "ALLOW", "a": {"[" * 101}{"]" * 101}}}',
            "nested more than 100 deep",
        ),
        ('{"prompt":\u3000"x"}', r"column 11, at '\\u3000"),
        ('{“prompt”: "x"}', "at '“prompt”"),
        ('{"prompt": "' + "x" * (1 << 24) + '"}', "longer than 16,777,216 characters"),
        (
            json.dumps({**GOOD, "thinking": {"task": "x"}, "final": "y"}),
            "thinking.safety must be non-empty",
        ),
    ],
)
def test_bad_lines_are_told_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_jsonl(path, parse_record)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "--skip-bad" in str(caught.value)
    good, bad = read_jsonl(path, parse_record, skip_bad=True)
    assert len(good) == 1
    assert [item.where for item in bad] == [f"{path}:3"]


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_jsonl(tmp_path / "none", parse_record)
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(DataError, match="no usable record"):
        read_jsonl(tmp_path / "empty", parse_record)
    (tmp_path / "latin").write_bytes(b'{"prompt": "caf\xe9", "decision": "ALLOW"}')
    with pytest.raises(DataError, match="not UTF-8 at byte 15"):
        read_jsonl(tmp_path / "latin", parse_record)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ('[\n{"prompt": "a", "decision": "ALLOW"},\n{"prompt": "b", "decision": "DENY"}\n]', ".[]"),
        ('\n[{"prompt": "a", "decision": "ALLOW"},\n{"prompt": "b", "decision": "DENY"}]', ".[]"),
        ('{\n"prompt": "a",\n"decision": "ALLOW"\n}\n', "."),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_json_over_several_lines_is_no_json_lines(
    tmp_path: Path, text: str, query: str, skip_bad: bool
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(f"one object a line, e.g. by: jq -c '{query}'")):
        read_jsonl(path, parse_record, skip_bad=skip_bad)


def test_whole_characters_and_large_numbers_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "\\ud83d\\ude00", "b": 12345678901234567890123, "c": 1e-999}\n')
    (row,) = read_jsonl(path, lambda raw, where: raw)[0]
    assert row == {"a": "😀", "b": 12345678901234567890123, "c": 0.0}


def test_equal_sides_and_missing_sides_are_told() -> None:
    with pytest.raises(DataError, match="chosen and rejected are equal"):
        parse_pair({"prompt": "p", "chosen": SIDE, "rejected": SIDE}, where="f:1")
    with pytest.raises(DataError, match="rejected must be an object"):
        parse_pair({"prompt": "p", "chosen": SIDE}, where="f:1")


def test_a_decision_that_contradicts_its_response_is_an_error() -> None:
    with pytest.raises(DataError, match=r"f:1: decision is REFUSE, and thinking.policy says ALLOW"):
        parse_record(
            {**GOOD, "decision": "REFUSE", "thinking": THINKING, "final": "Use kill."}, where="f:1"
        )
    vague = {**THINKING, "policy": "by the rule"}
    with pytest.raises(DataError, match=r"f:1: decision is ALLOW, and final declines"):
        parse_record({**GOOD, "thinking": vague, "final": "I can't help with that."}, where="f:1")


def test_rows_are_read_back_whatever_ends_a_line_elsewhere(tmp_path: Path) -> None:
    rows = [{"prompt": "a\u2028b\x85c\x1cd"}, {"prompt": "日本"}]
    write_jsonl(tmp_path / "x.jsonl", rows)
    assert read_rows(tmp_path / "x.jsonl") == rows
