from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aegis.errors import StoppedError
from aegis.storage.journal import Journal


def no(*_: Any) -> Any:
    raise AssertionError("worked out twice")


def test_what_is_finished_is_not_done_twice(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "j.jsonl"
    assert Journal(path)("a", lambda: ["値", 1]) == ["値", 1]
    again = Journal(path)
    assert len(again.values) == 1
    assert again("a", no) == ["値", 1]
    assert again("b", lambda: 2) == 2
    assert Journal(path).values == {"a": ["値", 1], "b": 2}


def test_every_cut_keeps_the_lines_before_it(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    journal("a", lambda: "first")
    one = path.stat().st_size
    journal("b", lambda: "second")
    whole = path.read_bytes()
    for cut in range(one, len(whole)):
        path.write_bytes(whole[:cut])
        found = Journal(path)
        assert found.values["a"] == "first"
        found("c", lambda: "third")
        assert Journal(path).values["c"] == "third"


def test_a_flipped_bit_costs_its_line_only(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    journal("a", lambda: "first")
    journal("b", lambda: "second")
    path.write_bytes(path.read_bytes().replace(b"first", b"fisrt"))
    told: list[str] = []
    found = Journal(path, say=told.append)
    assert found.values == {"b": "second"}
    assert "1 damaged line(s) passed over" in told[0]


def test_a_stop_keeps_the_value_just_made(tmp_path: Path) -> None:
    def stop() -> None:
        raise StoppedError("stopped by SIGTERM")

    with pytest.raises(StoppedError):
        Journal(tmp_path / "j.jsonl", check=stop)("a", lambda: 1)
    assert Journal(tmp_path / "j.jsonl")("a", no) == 1
