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
    assert line["content"] == {"prompt": ""}


def test_a_missing_file_leaves_no_folder(tmp_path: Path) -> None:
    done = called("data", "convert", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "out"))
    assert isinstance(done.exception, DataError)
    assert not (tmp_path / "out").exists()


def test_weights_and_seed_are_given_as_options(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [{"id": f"{name}{n}", "prompt": f"p{n}", "decision": "DENY"} for n in range(50)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    options = ("--weight", "0.5", "--weight", "1", "--seed", "3", "-o", str(tmp_path / "o.csv"))
    counts = json.loads(called("data", "convert", *files, *options, "--json").stdout)["counts"]
    assert counts["record"] + counts["rejected"] == 100
    assert 60 < counts["record"] < 90
    done = called("data", "convert", *files, "--weight", "0.5", "-o", str(tmp_path / "x"))
    assert "--weight must be given once for each of the 2 inputs, got 1" in str(done.exception)


def test_the_report_counts_what_was_no_item_as_well(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,decision\nx,DENY\ny\n")
    called("data", "convert", str(tmp_path / "a.csv"), "-o", str(tmp_path / "out"))
    page = (tmp_path / "out" / "data_report.html").read_text(encoding="utf-8")
    assert "2 items came in, 1 went out" in page
