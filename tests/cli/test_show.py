from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aegis.cli.show import (
    echo,
    escaped,
    print_document,
    print_json,
    print_note,
    print_result,
    print_table,
)

UNSAFE = "\x00\x07\x08\r\x1b\x7f\x85\x9b\u200f\u2028\u202e\u2066\ufeff\U000e0041"


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


def test_a_table_cuts_nothing_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    long = "".join(map(str, range(100)))
    print_table(("key", "path"), [("a" * 40, long)])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert re.sub(r"[^\d]", "", printed) == long


def test_brackets_in_a_table_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "b"), [("[red]x[/red]", "1")], title="two")
    printed = capsys.readouterr().out
    assert "[red]x[/red]" in printed
    assert "two" in printed


@pytest.mark.parametrize("unsafe", UNSAFE)
def test_nothing_that_is_printed_steers_the_terminal(
    unsafe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"a{unsafe}b"
    print_table((text,), [(text,)], title=text)
    print_note(text)
    echo(text)
    echo(text, err=True)
    print_result(False, {}, text)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_document(text)
    printed = capsys.readouterr()
    assert unsafe not in printed.out + printed.err
    assert printed.err.count(escaped(text)) == 2
    assert printed.out.count(escaped(text)) == 6


def test_people_read_their_own_text_and_programs_every_character(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = "日本語\u3000の\xa0文, e\u0301, 👩\u200d💻, العربية, C:\\new\ttab\nline"
    assert escaped(plain) == plain
    print_document("\x1b[1m")
    print_json("\x1b\u202e")
    printed = capsys.readouterr().out
    assert printed.startswith("\x1b[1m")
    assert json.loads(printed.removeprefix("\x1b[1m")) == "\x1b\u202e"
    print_note("one\ntwo")
    assert capsys.readouterr().err == "· one\\ntwo\n"


def test_every_verb_prints_through_one_place() -> None:
    folder = Path(__file__).parents[2] / "src" / "aegis" / "cli"
    for path in folder.glob("*.py"):
        if path.name not in ("show.py", "notify.py"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])print\(|sys\.std(out|err)\.write|secho", text), path
            assert text.count("typer.echo") == (path.name == "__init__.py"), path  # the version
