"""aegis data score, as it is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.errors import BadInputError
from tests.cli.test_serve import called
from tests.data.test_score import GRADED


def test_a_set_is_scored_grown_and_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = called("data", "score", str(GRADED), "-o", str(out), "--grow", "60,999", "--json")
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert [stage["kept"] for stage in shown["stages"]] == [True, False]
    assert "the set has 130" in shown["stages"][1]["verdict"]
    assert sum(shown["histogram"]) == shown["scored"] == 60
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text("utf-8").splitlines()]
    assert all(part["reason"] for row in rows for part in row["parts"].values())
    again = called("data", "score", str(out), "--least", "0.5")
    assert "overall" in again.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--grow", "500,100", "must rise"),
        ("--grow", "0", "must rise"),
        ("--grow", "many", "whole numbers"),
        ("--grow", "", "whole numbers"),
        ("-o", ".", "holds the input"),
    ],
)
def test_bad_input_is_told_before_the_work(option: str, value: str, message: str) -> None:
    result = called("data", "score", str(GRADED), option, value)
    assert isinstance(result.exception, BadInputError)
    assert message in str(result.exception)
