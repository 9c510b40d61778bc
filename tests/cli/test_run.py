from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aegis import pipeline
from aegis.cli.run import _print_results, run
from aegis.errors import DataError
from aegis.evaluate.decisions import write_results
from tests.evaluate.test_compare import three_verdicts
from tests.evaluate.test_report import BASE, CANDIDATE


def test_the_run_carries_the_call_that_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, Any]] = []

    def run_pipeline(settings: Any, **options: Any) -> SimpleNamespace:
        calls.append({"settings": settings, **options})
        return SimpleNamespace(to_json=lambda: {"stage": "completed"})

    monkeypatch.setattr(pipeline, "run_pipeline", run_pipeline)
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "c.yaml"
    config.write_text("runs: runs\n", encoding="utf-8")
    run(config, ["train.epochs=2"], auto_resume=False, skip_bad=True, json=True)
    assert json.loads(capsys.readouterr().out) == {"stage": "completed"}
    [call] = calls
    assert (call["settings"].train.epochs, call["settings"].data.skip_bad) == (2, True)
    assert call["resume"] is False
    overrides = ["--set", "train.epochs=2", "--set", "data.skip_bad=true"]
    assert call["command"] == {"argv": ["run", str(config), *overrides], "cwd": str(tmp_path)}


@pytest.mark.parametrize(
    "setting", ["records: [none]", "pairs: [none]", "generate: {topics: none}"]
)
def test_records_are_read_before_torch_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setitem(sys.modules, "aegis.pipeline", None)
    monkeypatch.setitem(sys.modules, "aegis.evaluate.report", None)
    config = tmp_path / "c.yaml"
    config.write_text(f"data: {{{setting}}}\n", encoding="utf-8")
    with pytest.raises(DataError, match="none: cannot be read"):
        run(config)


def test_the_last_tables_say_what_became_of_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a narrow table breaks its names
    comparison = three_verdicts()
    for name, judged in (("base", BASE), ("candidate", CANDIDATE), ("words", BASE)):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name, {**judged, "judge": f"a judge {name}"})
    _print_results(tmp_path, title="t")
    assert "got worse" not in capsys.readouterr().out
    text = json.dumps(comparison.to_json())
    (tmp_path / "comparison.json").write_text(text, encoding="utf-8")
    _print_results(tmp_path, title="t")
    told = capsys.readouterr().out
    assert comparison.sentences[0] in " ".join(told.split())
    for word in ("macro F1", "judge words", "judge base", "15 / 0", "cannot tell"):
        assert word in told


def test_results_are_read_back_whatever_ends_a_line_elsewhere(tmp_path: Path) -> None:
    from aegis.cli.run import _read

    (tmp_path / "metrics.json").write_text("{}")
    row = {"prompt": "a\u2028b\x85c\x1cd"}
    text = json.dumps(row, ensure_ascii=False)
    (tmp_path / "items.jsonl").write_text(f"{text}\n{text}\n", encoding="utf-8")
    assert _read(tmp_path / "metrics.json") == {"items": [row, row]}
