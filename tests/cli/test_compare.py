from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aegis.cli import app
from aegis.errors import BadInputError
from tests.evaluate.test_outcomes import BASE, CHILD, DECISIONS, save_benchmark, save_decisions

RIGHT = [1, 1, 0, 1] * 60


def compare(*words: object) -> str:
    arguments = ["compare", *map(str, words)]
    return CliRunner().invoke(app, arguments, catch_exceptions=False).stdout


def test_benchmarks_are_compared_and_reported(tmp_path: Path) -> None:
    worse = [score * (number % 5 > 0) for number, score in enumerate(RIGHT)]
    save_benchmark(tmp_path / "in", BASE, RIGHT)
    save_benchmark(tmp_path / "in", CHILD, worse)
    shown = compare(tmp_path / "in", "-o", tmp_path / "out")
    assert "got worse on arc_easy (-15.0" in " ".join(shown.split())
    printed: dict[str, Any] = json.loads(compare(tmp_path / "in", "-o", tmp_path / "out", "--json"))
    assert printed["tasks"][0]["verdict"] == "worse"
    assert printed["models"][1]["made_from"] == [BASE.content]
    stored = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert stored == printed
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# Comparison\n\nchild, against base: got worse on arc\\_easy")


def test_a_run_is_compared_with_itself(tmp_path: Path) -> None:
    rows = [(str(i), truth, "ALLOW") for i in range(20) for _, truth, _ in DECISIONS]
    rows = [(f"{number}", *row[1:]) for number, row in enumerate(rows)]
    save_decisions(tmp_path / "run" / "results" / "base", rows)
    save_decisions(tmp_path / "run" / "results" / "candidate", [(i, t, t) for i, t, _ in rows])
    printed = json.loads(compare(tmp_path / "run", "-o", tmp_path / "out", "--json"))
    assert "candidate, against base: got better on unsafe" in printed["sentences"][0]


def test_mistakes_end_in_one_line(tmp_path: Path) -> None:
    save_benchmark(tmp_path / "in", BASE, RIGHT)
    save_benchmark(tmp_path / "in", CHILD, RIGHT)
    for words, reason in (
        (["in"], "arc_easy .*equal on all 240 items"),
        (["in/base-bbbbbbbb"], "none to pair it with"),
        (["nowhere"], "is no folder"),
    ):
        with pytest.raises(BadInputError, match=reason):
            compare(*(tmp_path / word for word in words), "-o", tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(BadInputError, match="holds the input"):
        compare(tmp_path / "in", "-o", tmp_path)
