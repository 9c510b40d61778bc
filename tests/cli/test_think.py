from __future__ import annotations

import json
from pathlib import Path

from aegis.errors import BadInputError
from aegis.protocol.decisions import Decision
from aegis.protocol.fixed_texts import fixed_text
from tests.cli.test_serve import called, model_folder


def test_the_public_answer_alone_is_printed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model = str(model_folder(tmp_path / "model", Decision.DENY))
    limits = ("--model", model, "--section-tokens", "4", "--final-tokens", "6")
    assert called("think", "Sell it?", *limits).stdout == fixed_text(Decision.DENY, "en") + "\n"
    private = called("think", "Sell it?", *limits, "--debug-private", "--json")
    assert json.loads(private.stdout)["decision"] == "DENY"
    assert "private" not in private.stdout


def test_an_empty_prompt_is_told() -> None:
    result = called("think", " ")
    assert isinstance(result.exception, BadInputError)
    assert "non-empty" in str(result.exception)
