from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.engine.answer import Answer
from aegis.engine.response_grammar import Sampling
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


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [((), 0.0), (("--paths", "2"), 0.7), (("--paths", "2", "--temperature", "0.2"), 0.2)],
)
def test_several_paths_are_drawn_and_one_is_the_most_probable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], drawn: float
) -> None:
    seen = list[float]()

    def heard(engine: object, prompt: str, sampling: Sampling, **_: object) -> Answer:
        seen.append(sampling.temperature)
        return Answer("Yes.", Decision.ALLOW, (1.0, 0.0, 0.0, 0.0))

    monkeypatch.setattr("aegis.engine.answer.answer", heard)
    (tmp_path / "model").mkdir()
    model = str(model_folder(tmp_path / "model", Decision.DENY))
    assert called("think", "Sell it?", "--model", model, *asked).stdout == "Yes.\n"
    assert seen == [drawn]
