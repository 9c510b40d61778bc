from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.data.folder import StepOutcome, writing_data
from aegis.data.formats import read_items
from aegis.data.records import Rejected, parse_item
from aegis.storage.artifact import verify
from tests.data.test_records import GOOD, SIDE


def test_what_was_added_is_read_again(tmp_path: Path) -> None:
    items = [
        parse_item({**GOOD, "own": 1}, where="f:1"),
        parse_item(
            {"prompt": "p", "chosen": SIDE, "rejected": {**SIDE, "final": "No."}}, where="f"
        ),
        parse_item({"text": "t"}, where="f:3"),
    ]
    with writing_data(tmp_path / "out", "x") as writer:
        for item in items:
            writer.add(item)
        writer.add(Rejected("f:4", "because", {"line": "…"}))
        writer.log(StepOutcome("read", 1, 4, 3, {"because": 1}))
    assert list(read_items([tmp_path / "out"])) == items
    assert verify(tmp_path / "out").kind == "data"
    log = json.loads((tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8"))
    assert log == {"step": "read", "version": 1, "in": 4, "out": 3, "reasons": {"because": 1}}
    counts = json.loads((tmp_path / "out" / "statistics.json").read_text(encoding="utf-8"))
    assert counts["counts"] == {"records": 1, "pairs": 1, "plain": 1, "rejected": 1}


def test_a_writer_that_is_cut_leaves_nothing(tmp_path: Path) -> None:
    def cut() -> None:
        with writing_data(tmp_path / "out", "x") as writer:
            writer.add(parse_item(GOOD, where="f:1"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut()
    assert list(tmp_path.iterdir()) == []
