from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aegis.cli import app
from aegis.errors import BadInputError
from tests.engine.test_text_server import Replies, serving

pytest.importorskip("lm_eval")

RUNNER = CliRunner()


def tags(handler: Replies) -> None:
    handler.garbage = b'{"models": [{"name": "tiny:latest", "digest": "d1"}]}'
    handler._reply(None)


def test_one_json_a_model_and_task_and_a_table(tmp_path: Path, save_base: Callable[..., Path]):
    row = {"question": "What?", "choices": ["a", "b", "c"], "answer": 1}
    (tmp_path / "arc_easy_test.jsonl").write_text((json.dumps(row) + "\n") * 3)
    model, output = save_base("llama"), tmp_path / "results"
    command = ["evaluate", "benchmarks", str(model), "--tasks", "arc_easy,", "--limit", "2"]
    command += ["--data-dir", str(tmp_path), "-o", str(output)]
    shown = RUNNER.invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "acc_norm" in shown.stdout
    printed = json.loads(RUNNER.invoke(app, [*command, "--json"]).stdout)
    (path,) = output.glob("*/arc_easy.json")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert printed[0]["measures"] == written["measures"]
    assert (printed[0]["items"], len(written["items"])) == (2, 2)
    assert written["schema"] == "aegis-benchmarks-1"


def test_a_server_is_asked_by_letter_and_the_table_says_so(tmp_path: Path):
    with serving() as (url, _):  # answers with the prompt's last word, which names "D."
        command = ["evaluate", "benchmarks", "--ollama", "tiny", "--host", url, "--limit", "3"]
        command += ["--tasks", "plain_facts", "-o", str(tmp_path / "o")]
        assert "acc by letter" in RUNNER.invoke(app, command).stdout
    with serving(garbage=b'{"message": {"content": "banana"}}', do_GET=tags) as (url, _):
        command[5], command[-1] = url, str(tmp_path / "p")
        shown = RUNNER.invoke(app, command)
        assert shown.exit_code == 0, shown.output
        assert "tiny plain_facts: 3 of 3 answers name no letter" in " ".join(shown.stderr.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", ","], "--tasks must name at least one task"),
        (["--tasks", "arc_easy", "--data-dir", "nowhere"], "no such folder"),
        (["--tasks", "arc_eazy", "--data-dir", "."], "the nearest are arc_easy"),
    ],
)
def test_what_cannot_be_is_told_before_a_model_is_loaded(
    options: list[str], message: str, tmp_path: Path
):
    done = RUNNER.invoke(
        app, ["evaluate", "benchmarks", "no-model", *options, "-o", str(tmp_path / "o")]
    )
    assert isinstance(done.exception, BadInputError)
    assert message in str(done.exception)
