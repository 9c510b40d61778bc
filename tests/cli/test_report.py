from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aegis.cli import app
from aegis.errors import BadInputError
from tests.evaluate.test_summary import FORMATS, mixed_results


def test_a_folder_of_mixed_results_is_summarised(tmp_path: Path) -> None:
    mixed_results(tmp_path / "in", 60)
    (tmp_path / "in" / "cut.json").write_text("{")
    words = ["report", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "1 files gave nothing" in " ".join(shown.stdout.split())
    assert "cut.json: not valid JSON" in shown.stderr
    printed = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert set(printed["formats"]) == set(FORMATS)
    assert {"report.md", "summary.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_no_result_is_bad_input(tmp_path: Path) -> None:
    words = ["report", str(tmp_path), "-o", str(tmp_path / "out")]
    with pytest.raises(BadInputError, match="no result"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert not (tmp_path / "out").exists()
