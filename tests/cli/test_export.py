from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from aegis.cli import app
from aegis.errors import BadInputError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gguf", "--imatrix", "nowhere.txt"], "--imatrix nowhere.txt: no such file"),
        (["gguf", "--types", "Q9"], "'Q9' is not one of f32"),
        (["gguf", "--kl-limit", "Q8_0"], "must be TYPE=NATS"),
        (["ollama", "--host", "ftp://box"], "must begin with http"),
        (["ollama", "--name", "a b/../x"], "--name must be MODEL, MODEL:TAG or NAMESPACE/MODEL"),
        (["card", "-o", "."], "--output .: is a folder; give a file"),
    ],
)
def test_options_are_checked_before_anything_is_read(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "latest" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "latest" / "model" / "config.json").write_text("{}")
    run = CliRunner().invoke(app, ["export", *arguments])
    assert isinstance(run.exception, BadInputError)
    assert message in str(run.exception)
    assert len([*tmp_path.rglob("*")]) == 4
