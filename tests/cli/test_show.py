from __future__ import annotations

import json

import pytest

from aegis.cli.show import print_json, print_note, print_table


def test_results_go_to_stdout_and_notes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"名": [1, None]})
    print_note("half done")
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"名": [1, None]}
    assert "名" in printed.out
    assert printed.err == "· half done\n"


def test_no_number_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="JSON"):
        print_json(float("nan"))


def test_brackets_in_a_table_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "b"), [("[red]x[/red]", "1")], title="two")
    printed = capsys.readouterr().out
    assert "[red]x[/red]" in printed
    assert "two" in printed
