"""aegis data pairs, as it is called, a real model included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.data.records import write_jsonl
from aegis.errors import BadInputError
from aegis.protocol.decisions import Decision
from tests.cli.test_serve import called, model_folder
from tests.data.test_pairs import DENY, NO, RIGHT, WRONG_SUM, label, response


def samples(folder: Path) -> str:
    path = folder / "samples.jsonl"
    write_jsonl(
        path, [response(RIGHT), response(WRONG_SUM, "b"), response(NO, "c", **DENY), label()]
    )
    return str(path)


def test_pairs_are_made_and_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = called("data", "pairs", samples(tmp_path), "-o", str(out), "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["pairs"], report["samples"], report["prompts"]) == (1, 3, 1)
    assert json.loads((out / "pairs.json").read_text("utf-8"))["rules"]["verifiable"] == 1
    assert len((out / "rejected.jsonl").read_text("utf-8").splitlines()) == 1
    assert "no pair with REFUSE" in called("data", "pairs", samples(tmp_path)).output


@pytest.mark.slow
def test_a_model_draws_and_judges(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model = str(model_folder(tmp_path / "model", Decision.DENY))
    options = ("--model", model, "--samples", "2", "--section-tokens", "4", "--final-tokens", "6")
    out = tmp_path / "out"
    result = called("data", "pairs", samples(tmp_path), "-o", str(out), *options, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["pairs"] == 1
    assert not list(tmp_path.glob(".out*"))  # what was drawn is needed no more


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("none.jsonl",), BadInputError, "none.jsonl"),
        (("{}", "--model", "none"), BadInputError, "no such model"),
        (("{}", "--samples", "1"), None, "1"),
        (("{}", "-o", "{}"), BadInputError, "is not a folder"),
    ],
)
def test_bad_input_is_told(
    tmp_path: Path, arguments: tuple[str, ...], error: type[Exception] | None, message: str
) -> None:
    path = samples(tmp_path)
    result = called("data", "pairs", *(argument.format(path) for argument in arguments))
    assert result.exit_code != 0
    if error:
        assert isinstance(result.exception, error)
        assert message in str(result.exception)
    assert [each.name for each in tmp_path.iterdir()] == ["samples.jsonl"]
