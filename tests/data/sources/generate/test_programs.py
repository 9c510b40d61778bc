"""Real small programs that behave like the real ones, and misbehave."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import psutil
import pytest

from aegis.data.sources.generate.backend import AccessError, CallError, CallUsage, Request
from aegis.data.sources.generate.choose import BackendChoice, open_backend
from aegis.data.sources.generate.command import (
    Finished,
    bare_environment,
    empty_folder,
    run_command,
)
from aegis.data.sources.generate.programs import PROGRAMS, ProgramBackend, template_program
from aegis.data.sources.generate.schemas import Notes, json_schema
from aegis.errors import BadInputError
from tests.data.sources.generate.stand_in import calls, digest, good_answer, install

PROMPT = 'Write research notes. "facts"'
REQUEST = Request("notes", "t", PROMPT, json_schema(Notes))
NAMES = ("codex", "gemini", "claude")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GEMINI_API_KEY", "CODEX_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def asked(name: str, mode: str, place: Path, *, timeout_s: float = 30) -> ProgramBackend:
    install(place, name, mode)
    backend = open_backend(BackendChoice(name, model="m-1", timeout_s=timeout_s))
    assert isinstance(backend, ProgramBackend)
    return backend


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["good", "fenced"])
def test_an_answer_and_what_it_used(name: str, mode: str, place: Path) -> None:
    answer = asked(name, mode, place).ask([REQUEST])[0]
    assert json.dumps(good_answer(PROMPT)) in answer.text
    assert answer.usage == CallUsage(120, 40, 0.01 if name == "claude" else None)
    assert calls(place) == [("begun", digest(PROMPT)), ("ended", digest(PROMPT))]


@pytest.mark.parametrize("name", NAMES)
def test_failures_are_told_apart(name: str, place: Path) -> None:
    with pytest.raises(CallError, match="429") as busy:
        asked(name, "busy", place).ask([REQUEST])
    assert (busy.value.again, busy.value.wait_s) == (True, 0.02)
    with pytest.raises(AccessError, match="login expired"):
        asked(name, "expired", place).ask([REQUEST])
    with pytest.raises(CallError, match=r"code 3|noise") as failed:
        asked(name, "failing", place).ask([REQUEST])
    assert failed.value.again
    with pytest.raises(CallError) as garbage:
        asked(name, "garbage", place).ask([REQUEST])
    assert garbage.value.again
    with pytest.raises(CallError, match="an empty answer") as empty:
        asked(name, "empty", place).ask([REQUEST])
    assert empty.value.usage, "it was billed"
    assert empty.value.usage.input_tokens == 120


ODD = {
    "codex": [
        '{"type": "item.completed", "item": "x"}',
        '{"type": "turn.failed", "error": "boom"}',
        '{"type": "turn.completed", "usage": [1]}',
    ],
    "gemini": [
        '{"response": "x", "stats": "y"}',
        '{"response": "x", "stats": {"models": {"m": {"tokens": [1]}}}}',
        '{"response": "x", "stats": {"models": {"m": 3}}}',
    ],
    "claude": [
        '{"result": "x", "usage": [1]}',
        '{"result": "x", "total_cost_usd": NaN}',
        '{"result": "x", "total_cost_usd": -1}',
        '{"result": "x", "usage": {"output_tokens": true}}',
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_odd_output_is_an_answer_or_a_failure_and_no_crash(name: str) -> None:
    for text in ODD[name]:
        read, done = PROGRAMS[name].read, Finished(0, text, "")
        if name == "codex":
            with pytest.raises(CallError):
                read(done)
        else:
            assert (read(done).text, read(done).usage) == ("x", CallUsage())


def test_a_failure_that_speaks_of_tokens_is_no_expired_login(place: Path) -> None:
    for words in ("Unexpected token '}': invalid JSON", "max_tokens: the value is invalid"):
        with pytest.raises(CallError) as failed:
            PROGRAMS["gemini"].read(Finished(1, "", words))
        assert not isinstance(failed.value, AccessError)
    with pytest.raises(AccessError):
        PROGRAMS["gemini"].read(Finished(1, "", "Error: your token has expired"))


def test_what_cannot_be_started_and_an_empty_key_are_told_before_the_first_call(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(place, "codex", "logged out")
    monkeypatch.setenv("CODEX_API_KEY", "")
    with pytest.raises(BadInputError, match="nobody is logged in"):
        open_backend(BackendChoice("codex")).check()
    (place / "bin" / "codex").write_text("#!/no/such/program\n")
    with pytest.raises(BadInputError, match=r"codex cannot be started .*npm install"):
        open_backend(BackendChoice("codex")).check()
    with pytest.raises(BadInputError, match="--model is needed where the command"):
        open_backend(BackendChoice("cli:llm -m {model}"))


def test_a_torn_line_is_no_success(place: Path) -> None:
    with pytest.raises(CallError):
        asked("codex", "torn", place).ask([REQUEST])


def test_a_slow_program_and_its_children_are_killed(place: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(CallError, match="did not end within 1 s"):
        asked("codex", "slow", place, timeout_s=1).ask([REQUEST])
    assert time.monotonic() - begun < 10


def test_a_child_that_outlives_its_program_is_killed(place: Path) -> None:
    begun = time.monotonic()
    assert asked("claude", "child", place).ask([REQUEST])[0].text
    assert time.monotonic() - begun < 20
    child = int((place / "calls.child").read_text())
    deadline = time.monotonic() + 5
    while psutil.pid_exists(child) and psutil.Process(child).status() != "zombie":
        assert time.monotonic() < deadline, "it is still alive"
        time.sleep(0.02)


def test_output_without_end_is_cut_off(place: Path) -> None:
    install(place, "w", "huge", like="plain")
    with pytest.raises(CallError, match="wrote more than 8 MiB"):
        ProgramBackend(template_program("w")).ask([REQUEST])


def test_any_other_program_by_a_template(place: Path) -> None:
    install(place, "w", "good", like="plain")
    answer = ProgramBackend(template_program("w {model}".replace(" {model}", ""))).ask([REQUEST])[0]
    assert json.loads(answer.text) == good_answer(PROMPT)
    with pytest.raises(BadInputError, match="close every quotation mark"):
        template_program("w 'x")
    with pytest.raises(BadInputError, match="needs a command"):
        template_program(" ")
    shown = ProgramBackend(template_program("echo {model} {schema}"), model="a b").ask([REQUEST])
    assert shown[0].text.startswith("a b /")


def test_the_folder_is_empty_and_the_environment_bare(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("MINE", "m")
    script = "import os, json; print(json.dumps([os.listdir('.'), dict(os.environ)]))"
    (place / "w").write_text(script)
    program = template_program(f"python3 {place / 'w'}")
    listed, seen = json.loads(ProgramBackend(program, pass_env=["MINE"]).ask([REQUEST])[0].text)
    assert listed == []
    assert seen["MINE"] == "m"
    assert {"AWS_SECRET_ACCESS_KEY", "PYTEST_CURRENT_TEST"}.isdisjoint(seen)
    with empty_folder() as folder:
        options = {"folder": folder, "environment": bare_environment(), "timeout_s": 5}
        long = "あ" * 100_000  # as an argument it would be too long
        assert run_command(["wc", "-c"], long, **options).stdout.strip() == "300000"
        assert run_command(["true"], long, **options).code == 0
    assert not folder.exists()


@pytest.mark.parametrize("name", ["codex", "claude"])
def test_a_missing_program_or_login_is_found_before_the_first_call(name: str, place: Path) -> None:
    os.environ["PATH"] = str(place / "bin")
    with pytest.raises(BadInputError, match=f"no program '{name}'; npm install -g"):
        open_backend(BackendChoice(name)).check()
    with pytest.raises(BadInputError, match=r"nobody is logged in \(Not logged in\)"):
        asked(name, "logged out", place).check()
    asked(name, "good", place).check()
    assert calls(place) == []


def test_gemini_is_logged_in_by_a_file_or_a_key(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = asked("gemini", "good", place)
    with pytest.raises(BadInputError, match=r"nobody is logged in.* or set GEMINI_API_KEY"):
        backend.check()
    (place / ".gemini").mkdir()
    (place / ".gemini" / "oauth_creds.json").write_text("{}")
    backend.check()
    (place / ".gemini" / "oauth_creds.json").unlink()
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    asked("gemini", "good", place).check()


def test_a_backend_that_there_is_not() -> None:
    with pytest.raises(BadInputError, match="must be one of local, codex, gemini, claude, cli:"):
        open_backend(BackendChoice("copilot"))


@pytest.mark.parametrize("name", NAMES)
def test_the_real_programs_know_our_flags(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the real program's --help, where it is installed; nothing is asked."""
    program = PROGRAMS[name]
    if not (found := shutil.which(name)):
        pytest.skip(f"{name} is not installed")
    verb = ["exec"] if name == "codex" else []
    with empty_folder() as folder:
        told = run_command(
            [found, *verb, "--help"],
            "",
            folder=folder,
            environment=bare_environment(),
            timeout_s=60,
        )
    flags = [word for word in program.arguments if word.startswith("-") and word != "-"]
    assert flags
    for flag in (*flags, program.with_model[0]):
        assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", told.stdout), flag
