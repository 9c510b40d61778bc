"""Command lines that write: Codex, Gemini and Claude Code, and any other by a template."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aegis.data.sources.generate.backend import (
    AccessError,
    CallError,
    CallUsage,
    RawAnswer,
    Request,
    told_count,
)
from aegis.data.sources.generate.command import (
    Finished,
    bare_environment,
    empty_folder,
    run_command,
)
from aegis.errors import BadInputError
from aegis.storage.files import fingerprint

_SCHEMA_FILE = "schema.json"
_STATUS_S = 30.0
_QUOTED = 300  # characters of a program's own words
_BUSY = re.compile(r"\b(?:429|529|503)\b|rate.?limit|quota|overloaded|too many requests", re.I)
_WAIT = re.compile(r"(?:again|retry|wait)\D{0,20}?(\d+(?:\.\d+)?)\s*(ms|s|m|h)", re.I)
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_NO_ACCESS = re.compile(
    r"\b401\b|unauthori[sz]ed|not logged in|log ?in again|please (?:run )?/?log ?in"
    r"|invalid.{0,12}api.?key|api.?key.{0,20}(?:not valid|invalid|expired|missing)"
    r"|\b(?:token|session|login|credentials?) (?:\w+ ){0,2}(?:expired|revoked|invalid)"
    r"|authentication (?:failed|required|error)|not authenticated",
    re.I,
)
_UNTOLD = CallUsage()
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


@dataclass(frozen=True)
class Program:
    """How a command line is called, and what its output means.

    Args:
        arguments: of a call; {model} and {schema}, the path of a JSON schema, are filled in.
        with_model: arguments added where the user names a model.
        read: makes an answer of what it wrote, or raises CallError.
        keys: environment variables each of which stands for a login.
        passed: others that it may see.
        status: arguments of the call that ends with 0 if somebody is logged in.
        credentials: files below the home folder, one of which a login leaves.
        remedy: how to install it and log in.
    """

    name: str
    arguments: tuple[str, ...]
    read: Callable[[Finished], RawAnswer]
    with_model: tuple[str, ...] = ("-m", "{model}")
    keys: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    credentials: tuple[str, ...] = ()
    remedy: str = "install it, or name another"


class ProgramBackend:
    """A command line, called anew for each request.

    Args:
        pass_env: further environment variables that it may see.
        timeout_s: what one call may take; its whole process group is killed then.
    """

    batch = 1

    def __init__(
        self,
        program: Program,
        *,
        model: str | None = None,
        pass_env: Sequence[str] = (),
        timeout_s: float = 300,
    ) -> None:
        added = program.with_model if model else ()
        self.program = replace(program, arguments=(*program.arguments, *added))
        self.name, self.model, self.timeout_s = program.name, model, timeout_s
        self.identity = fingerprint(self.program.arguments, model)
        self.environment = bare_environment([*program.keys, *program.passed, *pass_env])

    def check(self) -> None:
        program = self.program
        name = program.arguments[0]
        if shutil.which(name) is None:
            raise BadInputError(f"--backend {self.name}: no program {name!r}; {program.remedy}")
        if any(self.environment.get(key) for key in program.keys):
            return
        problem = ""
        if program.credentials:
            places = [Path.home() / path for path in program.credentials]
            problem = "" if any(path.is_file() for path in places) else "nobody is logged in"
        elif program.status:
            try:
                done = self._run([name, *program.status], "", _STATUS_S)
            except CallError as error:
                raise BadInputError(
                    f"--backend {self.name}: {name} {error}; {program.remedy}"
                ) from error
            if done.code != 0:
                words = done.ended_because or done.stdout.strip() or done.stderr.strip()
                problem = f"nobody is logged in ({words[:_QUOTED]})"
        if problem:
            keys = " or ".join(program.keys)
            raise BadInputError(
                f"--backend {self.name}: {problem}; {program.remedy}, or set {keys}"
            )

    def ask(self, requests: Sequence[Request]) -> list[RawAnswer]:
        (request,) = requests
        done = self._run(self.program.arguments, request.prompt, self.timeout_s, request)
        if done.ended_because:
            raise CallError(done.ended_because, usage=None, raw=_raw(done))
        return [self.program.read(done)]

    def _run(
        self,
        arguments: Sequence[str],
        prompt: str,
        timeout_s: float,
        request: Request | None = None,
    ) -> Finished:
        with empty_folder() as folder:
            schema = folder / _SCHEMA_FILE
            schema.write_text(json.dumps(request.schema if request else {}), encoding="utf-8")
            values = {"{model}": self.model or "", "{schema}": str(schema)}
            words = [_filled(word, values) for word in arguments]
            found = shutil.which(words[0]) or words[0]  # it runs in another folder
            words[0] = os.path.abspath(found)
            options: Any = {"folder": folder, "environment": self.environment}
            try:
                return run_command(words, prompt, timeout_s=timeout_s, **options)
            except OSError as error:
                raise CallError(f"cannot be started ({error.strerror or error})") from error


def template_program(template: str) -> Program:
    """Return the program of `--backend cli:TEMPLATE`; its stdout is the answer.

    Raises:
        BadInputError: if the template is no command line.
    """
    try:
        words = tuple(shlex.split(template))
    except ValueError as error:
        raise BadInputError(
            f"--backend cli:{template}: {error}; close every quotation mark"
        ) from error
    if not words or not words[0]:
        raise BadInputError("--backend cli: needs a command, e.g. cli:'llm -m {model}'")
    return Program("cli", words, _read_plain, with_model=())


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _read_plain(done: Finished) -> RawAnswer:
    if done.code != 0:
        raise _failure(done, done.stderr or done.stdout)
    text = _ESCAPE.sub("", done.stdout).strip()
    if not text:
        raise CallError("an empty answer", raw=_raw(done))
    return RawAnswer(text)


def _read_codex(done: Finished) -> RawAnswer:
    """Read one event a line; what is torn or noise is passed over."""
    texts, errors, usage, completed = list[str](), list[str](), CallUsage(), False
    for event in filter(None, map(_object, done.stdout.splitlines())):
        kind, item = event.get("type"), _mapping(event.get("item"))
        if kind == "item.completed" and item.get("type") == "agent_message":
            texts.append(str(item.get("text", "")))
        elif kind in ("turn.failed", "error"):  # an item of type error comes in good runs, too
            errors.append(_words(event))
        elif kind == "turn.completed":
            completed = True
        if told := _mapping(event.get("usage")):
            usage = CallUsage(told_count(told, "input_tokens"), told_count(told, "output_tokens"))
    if done.code != 0 or not completed:
        raise _failure(done, errors[-1] if errors else done.stderr, usage)
    return _answer(done, texts[-1] if texts else "", usage)


def _read_gemini(done: Finished) -> RawAnswer:
    result = _last_object(done.stdout) or _last_object(done.stderr) or {}
    models = _mapping(_mapping(result.get("stats")).get("models"))
    told = [_mapping(_mapping(model).get("tokens")) for model in models.values()]
    usage = CallUsage(_sum(told, "prompt"), _sum(told, "candidates", "thoughts"))
    words = _words(result) or done.stderr or done.stdout
    if done.code in (41, 145):
        raise AccessError(words or "nobody is logged in", raw=_raw(done))
    if done.code != 0 or "response" not in result:
        raise _failure(done, words, usage, again=done.code not in (42, 52))
    answer = _answer(done, str(result["response"] or ""), usage)
    return replace(answer, model=next(iter(models)) if len(models) == 1 else None)


def _read_claude(done: Finished) -> RawAnswer:
    result = _last_object(done.stdout) or {}
    told, cost = [_mapping(result.get("usage"))], result.get("total_cost_usd")
    inputs = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    if not isinstance(cost, int | float) or not math.isfinite(cost) or cost < 0:
        cost = None
    usage = CallUsage(_sum(told, *inputs), _sum(told, "output_tokens"), cost)
    if done.code != 0 or result.get("is_error") or "result" not in result:
        words = result.get("result") or _words(result) or done.stderr or done.stdout
        raise _failure(done, str(words), usage)
    return _answer(done, str(result["result"] or ""), usage)


def _answer(done: Finished, text: str, usage: CallUsage) -> RawAnswer:
    if not text.strip():
        raise CallError("an empty answer", usage=usage, raw=_raw(done))
    return RawAnswer(text, usage)


def _failure(
    done: Finished, words: str, usage: CallUsage = _UNTOLD, *, again: bool = True
) -> CallError:
    """Return what a failed call's own words mean."""
    told = " ".join(_ESCAPE.sub("", words).split())
    reason = told[:_QUOTED] or f"ended with code {done.code} and no answer"
    if _BUSY.search(told):
        wait = _WAIT.search(told)
        wait_s = float(wait[1]) * _UNIT_S[wait[2].lower()] if wait else None
        return CallError(reason, wait_s=wait_s, usage=usage, raw=_raw(done))
    if _NO_ACCESS.search(told):
        return AccessError(reason, raw=_raw(done))
    return CallError(reason, again=again, usage=usage, raw=_raw(done))


def _words(told: dict[str, Any]) -> str:
    """Return what a program's own JSON says about an error, or nothing."""
    error = told.get("error") or told
    return str((error.get("message") if isinstance(error, dict) else error) or "")


def _raw(done: Finished) -> str:
    return f"{done.stdout[-20_000:]}\n--- stderr\n{done.stderr[-4_000:]}"


def _mapping(value: Any) -> dict[str, Any]:
    """Return a part of a program's JSON that should be an object, empty if it is none."""
    return value if isinstance(value, dict) else {}


def _sum(told: Sequence[dict[str, Any]], *names: str) -> int | None:
    """Return the sum of the tokens that are told, None where none are."""
    counts = [told_count(each, name) for each in told for name in names]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _last_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that the text ends with; there may be noise before it."""
    if whole := _object(text):
        return whole
    starts = [match.start() for match in re.finditer(r"^\{", text, re.MULTILINE)]
    return next(filter(None, (_object(text[start:]) for start in reversed(starts[-20:]))), None)


_CODEX_OFF = ("-s", "read-only", "--disable", "shell_tool", "--disable", "unified_exec")
_CODEX_BARE = (
    *("--json", "--ephemeral", "--ignore-user-config", "--ignore-rules"),
    "--skip-git-repo-check",
)
_CLAUDE_BARE = (
    *("--tools", "", "--no-session-persistence", "--strict-mcp-config"),
    *("--setting-sources", ""),
)
PROGRAMS = {
    "codex": Program(
        "codex",
        ("codex", "exec", *_CODEX_BARE, *_CODEX_OFF, "--output-schema", "{schema}", "-"),
        _read_codex,
        keys=("CODEX_API_KEY",),
        passed=("CODEX_HOME",),
        status=("login", "status"),
        remedy="npm install -g @openai/codex, then codex login",
    ),
    "gemini": Program(
        "gemini",
        ("gemini", "-o", "json", "--approval-mode", "plan", "--skip-trust"),
        _read_gemini,
        keys=("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS"),
        passed=("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"),
        credentials=(".gemini/oauth_creds.json", ".gemini/gemini-credentials.json"),
        remedy="npm install -g @google/gemini-cli, then gemini, and log in",
    ),
    "claude": Program(
        "claude",
        ("claude", "-p", "--output-format", "json", *_CLAUDE_BARE),
        _read_claude,
        with_model=("--model", "{model}"),
        keys=("ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"),
        passed=("CLAUDE_CONFIG_DIR", "ANTHROPIC_BASE_URL"),
        status=("auth", "status"),
        remedy="npm install -g @anthropic-ai/claude-code, then claude auth login",
    ),
}
