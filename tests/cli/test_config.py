from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from aegis.cli import app
from aegis.errors import ConfigError

QUICKSTART = str(Path(__file__).parents[2] / "examples" / "quickstart.yaml")


def output_of(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["config", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_a_setting_is_explained() -> None:
    shown = output_of("explain", "train.lr")
    for text in ("Step size of LoRA", "number", "> 0", "0.0003", "--set train.lr=0.0003"):
        assert text in shown
    assert json.loads(output_of("explain", "train.lr", "--json"))["default"] == 0.0003


def test_a_section_lists_its_settings() -> None:
    assert "train.ppo.kl_target" in output_of("explain", "train.ppo")
    assert "durable" in output_of("explain")


def test_an_unknown_key_is_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"trian\.lr is not a setting; did you mean train\.lr"):
        output_of("explain", "trian.lr")


def test_a_file_is_shown_whole() -> None:
    shown = yaml.safe_load(output_of("show", QUICKSTART, "--set", "train.weight_decay=0.5"))
    assert shown["train"]["weight_decay"] == 0.5
    assert shown["durable"]["interval_s"] == 180.0
    assert json.loads(output_of("show", QUICKSTART, "--json"))["train"]["weight_decay"] == 0.01


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], {"torch", "transformers", "numpy", "pydantic", "rich"}),
        (["config", "explain", "train.lr"], {"torch", "transformers", "numpy"}),
        (["config", "show", QUICKSTART], {"torch", "transformers", "numpy"}),
    ],
)
def test_nothing_heavy_is_imported(arguments: list[str], absent: set[str]) -> None:
    code = f"from aegis.cli import app; app({arguments!r}, standalone_mode=False)"
    code += (
        f"; import sys; sys.stderr.write(','.join(set({sorted(absent)!r}) & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
