from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from aegis.engine.judge import Judge
from aegis.engine.verdict import Verdict
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
    prompts.write_text('{"prompt": "a", "id": 7, "decision": "ALLOW"}\n{}\n', encoding="utf-8")
    options = ("--model", model, "--input", str(prompts), "--skip-bad", "--output", str(output))
    assert called("judge", *options).exit_code == 0
    (row,) = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert (row["id"], row["given_decision"], row["decision"]) == (7, "ALLOW", "DENY")
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    tilde = ("--model", model, "--input", "~/prompts.jsonl", "--skip-bad", "--output=~/v.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        patch.setenv("USERPROFILE", str(tmp_path))
        assert called("judge", *tilde).exit_code == 0
    assert json.loads((tmp_path / "v.jsonl").read_text(encoding="utf-8"))["id"] == 7
    assert called("judge", "Sell it?", "--model", model, "-o", os.devnull).exit_code == 0


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


BAD_ROWS = (
    r'{"prompt": "b", "x": "\ud83d"}',
    '{"prompt": "b", "x": 1e999}',
    '{"prompt": "b", "x": NaN}',
    '{"prompt": "b", "prompt": "c"}',
    '{"prompt": "b", "x": {"y": 1, "y": 2}}',
)


@pytest.mark.parametrize("row", BAD_ROWS)
@pytest.mark.parametrize("verb", [("judge", "--input"), ("evaluate", "decisions", "--data")])
def test_every_row_is_checked_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...], row: str
) -> None:
    monkeypatch.setattr("aegis.engine.judge.Judge.load", lambda *_: pytest.fail("was loaded"))
    rows = tmp_path / "rows.jsonl"
    good = '{"prompt": "a", "decision": "ALLOW"}\n'
    rows.write_text(good + row.replace("}", ', "decision": "DENY"}', 1) + "\n", encoding="utf-8")
    output = tmp_path / "out"
    result = called(*verb, str(rows), "--model", "none", "--output", str(output))
    assert isinstance(result.exception, BadInputError)
    assert f"{rows}:2: " in str(result.exception)
    assert not output.exists()


def test_a_judging_that_is_stopped_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    model = str(model_folder(tmp_path / "model", Decision.DENY))
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "v.jsonl"
    rows = [{"prompt": f"number {n}", "n": n} for n in range(7)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr("aegis.cli.judge._PART", 2)
    judge, calls = Judge.judge, itertools.count()

    def stopped(*arguments: Any, **options: Any) -> list[Verdict]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return judge(*arguments, **options)

    options = ("--model", model, "--input", str(prompts), "--output", str(output))
    with monkeypatch.context() as patch:
        patch.setattr(Judge, "judge", stopped)
        ended = called("judge", *options)
    assert "4 verdicts are in" in str(ended.exception)
    assert "begins anew" in str(ended.exception)
    partial = tmp_path / "v.jsonl.partial"
    kept = [json.loads(line)["n"] for line in partial.read_text(encoding="utf-8").splitlines()]
    assert (kept, output.exists()) == ([0, 1, 2, 3], False)
    assert called("judge", *options).exit_code == 0
    lines = output.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["n"] for line in lines] == list(range(7))
    assert not partial.exists()
    rows[6]["prompt"] = "x" * 5000
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(Judge, "judge", lambda *_, **__: pytest.fail("was judged"))
    assert "prompts.jsonl:7" in str(called("judge", *options).exception)
