from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aegis.cli import app
from aegis.engine import judge
from aegis.errors import BadInputError
from aegis.model import device
from aegis.runs.events import Event, Progress, Reporter
from aegis.runs.reporter import reporting
from tests.engine.conftest import write_model

pytest.importorskip("cyllama")

RUNNER = CliRunner()


def test_a_file_against_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_model(tmp_path / "m")
    file = tmp_path / "m" / "gguf" / "model-f32.gguf"
    text, data = tmp_path / "text.txt", tmp_path / "data.jsonl"
    text.write_text("Where do trains brake, and why is it so? " * 30)
    rows = [{"prompt": f"{word}?", "decision": "REFUSE"} for word in ("Why", "How", "Who")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = set[str]()

    def seen(setting: Any, place: Any) -> Any:
        settings.add(setting)
        return device.autocast(setting, place)

    monkeypatch.setattr(judge, "autocast", seen)
    command = ["evaluate", "damage", str(tmp_path / "m"), str(file), "--text", str(text)]
    command += ["--chunk-tokens", "64", "--chunks", "3", "--data", str(data)]
    shown = RUNNER.invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "reference perplexity" in shown.stdout
    text_table = shown.stdout.partition("decides alike")[0]
    assert " 0.0000 " not in text_table  # a small divergence is not shown as none
    events = list[Event]()
    with reporting(Reporter(events.append)):
        found = json.loads(RUNNER.invoke(app, [*command, "--json"]).stdout)
    told = {(each.label, each.done) for each in events if isinstance(each, Progress)}
    assert {("deciding, m", 3), ("deciding, model-f32.gguf", 3)} <= told
    assert found["text"][0]["n"] == 3 * 31
    assert found["text"][0]["kl_mean"]["value"] < 1e-6
    assert found["text"][0]["top1"]["value"] == 1.0
    assert [row["agreement"]["n"] for row in found["decisions"]] == [3, 3]
    assert settings == {"off"}


def test_only_files_are_compared(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    for name in ("folder", "nothing.gguf"):
        done = RUNNER.invoke(app, ["evaluate", "damage", "embedded", str(tmp_path / name)])
        assert isinstance(done.exception, BadInputError)
        assert "no such file; give the GGUF files" in str(done.exception)
