"""Every verb with every path, number and text that people may give by mistake.

The verbs come from the command line itself, so that a new option is tried as well. Each attempt
ends at once, in one line with a remedy, before a model is loaded.
"""

from __future__ import annotations

import functools
import inspect
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import typer.main
from typer.models import ArgumentInfo, OptionInfo

from aegis.audit import AuditKeys, AuditLog
from aegis.cli import app, main
from aegis.cli.options import INPUT, MODEL_FILES, OUTPUT_FILE, OUTPUT_FOLDER
from aegis.errors import BadInputError
from aegis.model.adapter_folder import ADAPTER_CARD_FILE

REACHED = "reached the work"
POSSIBLE = ("full", "text")
ESCAPES = "\x1b[31m\x9b2J\u202e"
# Where the work of a verb begins: nothing that an option says may be found wrong after it.
WORK = (
    "aegis.data.sources.generate.run.generate",
    "aegis.data.sources.web.collect.collect",
    "aegis.engine.judge.Judge.load",
    "aegis.engine.local_thinker.LocalThinker.load",
    "aegis.evaluate.benchmarks.models.name_model",
    "aegis.evaluate.benchmarks.tasks.load_benchmark",
    "aegis.export.fold.prepare",
    "aegis.export.gguf.export_gguf",
    "aegis.export.modelfile.make_modelfile",
    "aegis.pipeline.run_pipeline",
    "aegis.runs.autostart.run_command",
    "aegis.runs.supervisor.watch_over",
    "aegis.serve.server._load_engine",
    "aegis.train.memory.plan.plan",
    "aegis.tune.study.StudyWorkers",
)

SITES = """
contact: crawl@somewhere.jp
sites: [{start: [https://a.jp/], licence: CC0-1.0, terms: https://a.jp/terms}]
"""

GOOD = {
    "--model": "model",
    "--adapter": "model",
    "--data": "rows.jsonl",
    "--output": "out",
    "--config": "config.yaml",
    "--step": "sft",
    "--study": "alpha-schedule",
    "--prompt": "x",
    "--prompts": "x",
    "--log": "log",
    "--folder": "new",
    "--number": "1",
    "--numbers": "1",
    "--name": "somebody",
    "--reason": "tried",
    "--results": "full",
    "--id": "ab",
    "--text": "x",
    "--port": "1",
    "--tokens": "tokens.json",
    "--tasks": "arc_easy",
    "--inputs": "rows.jsonl",
    "--topics": "topics.jsonl",
    "--sites": "sites.yaml",
    "--files": "model/gguf/model-Q8_0.gguf",
}
UNUSED = (("autostart remove", "--config"), ("audit show", "--keys"))  # or not needed any more
DEFAULTS = ("--model", "--prompts")  # good values, where the verb's own are not there


@dataclass(frozen=True)
class Parameter:
    """One argument or option of a verb: its name on the command line and its type."""

    name: str
    type: type
    info: ArgumentInfo | OptionInfo
    required: bool

    def words(self, value: str) -> list[str]:
        if isinstance(self.info, OptionInfo):
            return [f"{self.name}={value}"]
        return [value]


def verbs(
    typer_app: Any = app, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, Callable[..., Any]]]:
    for command in typer_app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        yield " ".join((*words, name)), command.callback
    for group in typer_app.registered_groups:
        yield from verbs(group.typer_instance, (*words, group.name))


def parameters(verb: Callable[..., Any]) -> Iterator[Parameter]:
    defaults = inspect.signature(verb).parameters
    for name, hint in get_type_hints(verb, include_extras=True).items():
        if name == "return":
            continue
        kind, info = get_args(hint)
        while get_origin(kind) in (list, UnionType):
            kind = get_args(kind)[0]
        long = [text for text in getattr(info, "param_decls", None) or () if text.startswith("--")]
        shown = long[0] if long else f"--{name.strip('_').replace('_', '-')}"
        required = defaults[name].default is inspect.Parameter.empty
        yield Parameter(shown, kind, info, required)


VERBS = dict(verbs())
COMMAND = functools.cache(typer.main.get_command)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the verbs read, as the current one; no verb gets to its work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def reached(*_: object, **__: object) -> None:
        raise BadInputError(REACHED)

    monkeypatch.setattr("aegis.serve.server.bind", lambda *_: socket.socket())
    monkeypatch.setattr("typer.main.get_command", COMMAND)
    for target in WORK:
        monkeypatch.setattr(target, reached)
    (tmp_path / "model" / "gguf").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "gguf" / "model-Q8_0.gguf").write_text("")
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "sites.yaml").write_text(SITES)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x", "decision": "ALLOW"}\n')
    (tmp_path / "topics.jsonl").write_text('{"question": "x"}\n')
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "text").write_text("hello\n")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    AuditLog.open(tmp_path / "log", AuditKeys.create(tmp_path / "log.keys")).close()
    return tmp_path


def arguments(verb: str, mistaken: Parameter | None, value: str) -> list[str]:
    """Return words with which the verb would go to its work, but for one parameter's value."""
    good = GOOD | {"--file": "config.yaml" if verb == "config show" else "text"}
    words = []
    for parameter in parameters(VERBS[verb]):
        name = parameter.name
        if mistaken and name == mistaken.name:
            words += parameter.words(value)
        elif parameter.required or name in DEFAULTS or (verb, name) == ("serve", "--port"):
            words += parameter.words(good[name])  # a KeyError: give a new parameter a good value
    return words


def called(
    verb: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["aegis", *verb.split(), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out + printed.err


def mistakes(parameter: Parameter) -> list[str]:
    """Return what is no value of this type."""
    if parameter.type is Path:
        pipe = ["pipe"] if parameter.info.callback is INPUT else []
        nobody = "~nobody-of-this-name/x"
        return ["loop/x", "x" * 300, "/proc/x/y", "text/x", nobody, *pipe, *POSSIBLE]
    if parameter.type in (int, float):
        return ["inf", "nan", "-1", "9" * 23, "9" * 5000]
    if parameter.type is bool:
        return []
    return ["", ESCAPES, "\udcff", "x" * 100_000, "a b/../x"]


@pytest.mark.parametrize("verb", VERBS)
def test_mistakes_are_told_before_the_work(
    verb: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for parameter in parameters(VERBS[verb]):
        for value in mistakes(parameter):
            words = arguments(verb, parameter, value)
            code, text = called(verb, words, capsys, monkeypatch)
            told = f"{verb} {words}: {code} {text[-400:]}"[:2000]
            assert "unexpected" not in text, told
            assert "Traceback" not in text, told
            assert not {"\x1b", "\x9b", "\u202e"}.intersection(text), told
            assert code in (0, 2) or "NOT SOUND" in text, told
            impossible = parameter.type in (int, float, Path) and value not in POSSIBLE
            if impossible and (verb, parameter.name) not in UNUSED:
                assert code == 2, told
                assert REACHED not in text, told


@pytest.mark.parametrize(
    "verb",
    [
        "run",
        "train",
        "tune",
        "judge",
        "think",
        "fold",
        "serve",
        "data collect",
        "evaluate decisions",
        "evaluate damage",
        "export gguf",
    ],
)
def test_without_a_mistake_the_work_begins(
    verb: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = arguments(verb, None, "")
    assert REACHED in called(verb, words, capsys, monkeypatch)[1]


@pytest.mark.parametrize("verb", ["audit show", "audit verify", "audit anchor", "audit export"])
def test_a_folder_among_the_files_of_a_log(
    verb: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "log" / "segment-000002.jsonl").mkdir()
    code, text = called(verb, arguments(verb, None, ""), capsys, monkeypatch)
    assert "segment-000002.jsonl" in text
    assert code == 2 or "NOT SOUND" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_path_is_checked_and_every_number_has_bounds(verb: str) -> None:
    for parameter in parameters(VERBS[verb]):
        if parameter.type is Path:
            assert parameter.info.callback in (INPUT, OUTPUT_FILE, OUTPUT_FOLDER)
        elif parameter.type in (int, float):
            assert parameter.info.min is not None
            assert parameter.info.max is not None


def test_a_model_is_known_by_the_files_that_are_written() -> None:
    assert ADAPTER_CARD_FILE in MODEL_FILES
