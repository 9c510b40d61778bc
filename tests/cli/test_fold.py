from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from aegis.cli import app
from aegis.cli.show import short
from aegis.errors import AdapterError, BadInputError


def test_what_cannot_be_folded_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    adapter, output = tmp_path / "adapter", tmp_path / "model"
    adapter.mkdir()
    arguments = ["fold", str(adapter), "-o", str(output)]
    run = CliRunner().invoke(app, [*arguments, "--dtype", "int4"])
    assert isinstance(run.exception, BadInputError)
    assert "--dtype must be float32, bfloat16 or float16, got 'int4'" in str(run.exception)
    run = CliRunner().invoke(app, arguments)
    assert "neither a model's config.json nor an adapter's so8.json" in str(run.exception)
    (adapter / "so8.json").write_text("{}")
    run = CliRunner().invoke(app, arguments)
    assert isinstance(run.exception, AdapterError)
    assert "not a whole adapter folder" in str(run.exception)
    assert not output.exists()


def test_figures_are_short() -> None:
    values = (0.12345678901234567, 3.2e-17, 1.0, 37, "float32", ["live", "folded"])
    shown = ("0.1235", "3.2e-17", "1", "37", "float32", "['live', 'folded']")
    assert tuple(map(short, values)) == shown
