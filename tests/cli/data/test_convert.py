from __future__ import annotations

import json
from pathlib import Path

from aegis.errors import DataError
from tests.cli.test_serve import called


def test_items_and_rejects_of_two_files_are_in_one_folder(tmp_path: Path) -> None:
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_text('{"prompt": "x", "decision": "DENY"}\n{"prompt": ""}\n')
    other.write_text('{"text": "y"}\n')
    done = called("data", "convert", str(one), str(other), "-o", str(tmp_path / "out"), "--json")
    assert json.loads(done.stdout)["counts"] == {"records": 1, "plain": 1, "rejected": 1}
    line = json.loads((tmp_path / "out" / "rejected.jsonl").read_text(encoding="utf-8"))
    assert line["where"] == "a.jsonl:2"
    assert line["content"] == {"line": '{"prompt": ""}'}


def test_a_missing_file_leaves_no_folder(tmp_path: Path) -> None:
    done = called("data", "convert", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "out"))
    assert isinstance(done.exception, DataError)
    assert not (tmp_path / "out").exists()
