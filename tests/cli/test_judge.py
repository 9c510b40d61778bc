from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.errors import BadInputError
from aegis.protocol.decisions import Decision
from tests.cli.test_serve import called, model_folder


def test_prompts_are_decided_one_by_one_or_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model = str(model_folder(tmp_path / "model", Decision.DENY))
    alone = json.loads(called("judge", "Sell it?", "--model", model, "--json").stdout)
    assert (alone["prompt"], alone["decision"]) == ("Sell it?", "DENY")
    assert "DENY" in called("judge", "Sell it?", "Buy it?", "--model", model).stdout
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out" / "verdicts.jsonl"
    prompts.write_text('{"prompt": "a", "id": 7}\n{}\n', encoding="utf-8")
    options = ("--model", model, "--input", str(prompts), "--skip-bad", "--output", str(output))
    assert called("judge", *options).exit_code == 0
    (row,) = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert (row["id"], row["decision"]) == (7, "DENY")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either prompts"),
        (("x", "--input", "y"), "give either prompts"),
        ((" ",), "non-empty"),
        (("x", "--output", "."), "is a folder"),
    ],
)
def test_what_cannot_be_judged_is_told(arguments: tuple[str, ...], message: str) -> None:
    result = called("judge", *arguments)
    assert isinstance(result.exception, BadInputError)
    assert message in str(result.exception)
