from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aegis.cli import app
from aegis.engine.judge import Judge
from aegis.errors import DataError
from tests.evaluate.test_decisions import AlwaysAllow

LINES = ['{"prompt": "How do trains brake?", "decision": "ALLOW"}', '{"prompt": "Hurt him"}']


def evaluate(tmp_path: Path, *options: str) -> str:
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(LINES), encoding="utf-8")
    arguments = ["--model", str(tmp_path / "model"), "--data", str(data), *options]
    arguments = ["evaluate", "decisions", *arguments, "-o", str(tmp_path / "results")]
    return CliRunner().invoke(app, arguments, catch_exceptions=False).stdout


def test_results_are_printed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "load", lambda *_, **__: AlwaysAllow())
    printed = json.loads(evaluate(tmp_path, "--skip-bad", "--json"))
    assert (printed["n"], printed["accuracy"]["value"]) == (1, 1.0)
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert {"metrics.json", "items.jsonl", "confusion.png", "rejected.jsonl"} <= names


def test_a_bad_line_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl:2: decision is missing; give one of"):
        evaluate(tmp_path)
    assert not (tmp_path / "results").exists()
