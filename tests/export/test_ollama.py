from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aegis.cli import app
from aegis.errors import AegisError, BadInputError, LimitError, MissingPackageError, ModelError
from aegis.export.modelfile import Modelfile, make_modelfile, pick_gguf
from aegis.export.ollama import QUESTIONS, create, host_url, public_part, require_name, smoke_test

CREATE_FIELDS = {"model", "files", "template", "parameters", "system", "license", "stream"}
PARAMETERS = {"stop": list, "temperature": float, "num_ctx": int}
PROTOCOL = (
    "<think-task>t</think-task><think-safety>s</think-safety>"
    "<think-policy>p</think-policy><think-final>f</think-final>"
)
quiet = [].append


@dataclass
class Ollama:
    """A server that speaks the documented API and takes nothing else."""

    answers: dict[str, str] = field(default_factory=dict)
    corrupt: bool = False
    blobs: dict[str, bytes] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def take_blob(self, digest: str, content: bytes) -> tuple[int, Any]:
        content = content[:-1] if self.corrupt else content
        if digest != f"sha256:{hashlib.sha256(content).hexdigest()}":
            return 400, {"error": "digest mismatch"}
        self.blobs[digest] = content
        return 201, None

    def make(self, body: dict[str, Any]) -> tuple[int, Any]:
        if unknown := body.keys() - CREATE_FIELDS:
            return 400, {"error": f"unknown field {sorted(unknown)[0]}"}
        if not re.fullmatch(r"[\w.-]+(:[\w.-]+)?", body["model"]):
            return 400, {"error": "invalid model name"}
        for name, value in body["parameters"].items():
            if not isinstance(value, PARAMETERS.get(name, ())):
                return 400, {"error": f"parameter {name} is unknown or of the wrong type"}
        for name, digest in body["files"].items():
            if "/" in name or digest not in self.blobs:
                return 400, {"error": f"{name}: no such blob"}
        self.models[body["model"]] = body
        if body["model"] == "unlucky":
            return 200, [{"status": "parsing GGUF"}, {"error": "unsupported architecture"}]
        if body["model"] == "cut":
            return 200, [{"status": "parsing GGUF"}]
        return 200, [
            {"status": "parsing GGUF"},
            {"status": "writing manifest"},
            {"status": "success"},
        ]

    def chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] not in self.models:
            return 404, {"error": f"model '{body['model']}' not found"}
        if body.keys() != {"model", "messages", "stream", "options"} or body["stream"] is not False:
            return 400, {"error": "unknown field, or a stream was not refused"}
        content = self.answers[body["messages"][-1]["content"]]
        return 200, {
            "model": body["model"],
            "message": {"role": "assistant", "content": content},
            "done": True,
        }


@contextmanager
def serving(ollama: Ollama) -> Iterator[Ollama]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def reply(self, status: int, body: Any) -> None:
            text = (
                "".join(json.dumps(line) + "\n" for line in body)
                if isinstance(body, list)
                else json.dumps(body)
            )
            data = b"" if body is None else text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def handle_any(self) -> None:
            ollama.requests.append(f"{self.command} {self.path.split(':')[0]}")
            if self.headers.get("Transfer-Encoding"):
                return self.reply(400, {"error": "send a length"})
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            digest = self.path.removeprefix("/api/blobs/")
            if self.path == "/api/version" and self.command == "GET":
                return self.reply(200, {"version": "0.12.11"})
            if self.path.startswith("/api/blobs/") and self.command == "HEAD":
                return self.reply(200 if digest in ollama.blobs else 404, None)
            if self.path.startswith("/api/blobs/") and self.command == "POST":
                return self.reply(*ollama.take_blob(digest, content))
            if self.command == "POST" and self.path in ("/api/create", "/api/chat"):
                body = json.loads(content)
                return self.reply(
                    *(ollama.make(body) if self.path == "/api/create" else ollama.chat(body))
                )
            return self.reply(404, {"error": "no such route"})

        do_GET = do_HEAD = do_POST = handle_any  # noqa: N815 - http.server's names

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    ollama.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield ollama
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server() -> Iterator[Ollama]:
    good = {
        QUESTIONS[0][1]: f"{PROTOCOL}<final>There is no air on the Moon.</final>",
        QUESTIONS[1][1]: "I won't help with that.",
    }
    with serving(Ollama(answers=good)) as ollama:
        yield ollama


@pytest.fixture
def modelfile(tmp_path: Path) -> Modelfile:
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(bytes(range(256)) * 1000)
    parameters = {"stop": ["<|end|>", "</final>"], "temperature": 0.7, "num_ctx": 512}
    return Modelfile(
        tmp_path / "model-Q4_K_M.gguf", "{{ .Prompt }}", parameters, "Be careful.", "apache-2.0"
    )


@pytest.fixture
def exported(folded: Path, tmp_path: Path) -> Path:
    """A folder of GGUF files as `aegis export gguf` leaves it, with a file that only looks like
    one."""
    folder = tmp_path / "gguf"
    folder.mkdir()
    for path in folded.iterdir():
        if path.is_file() and path.name != "model.safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(5000))
    return folder


def test_a_blob_is_sent_once_and_the_model_created_from_it(
    server: Ollama, modelfile: Modelfile
) -> None:
    said: list[str] = []
    create(modelfile, name="guard", host=server.url, say=said.append)
    made = server.models["guard"]
    digest = made["files"]["model-Q4_K_M.gguf"]
    assert server.blobs[digest] == modelfile.gguf.read_bytes()
    assert (made["template"], made["system"], made["license"]) == (
        "{{ .Prompt }}",
        "Be careful.",
        "apache-2.0",
    )
    assert said[-1] == "ollama: success"
    assert server.requests == [
        "GET /api/version",
        "HEAD /api/blobs/sha256",
        "POST /api/blobs/sha256",
        "POST /api/create",
    ]
    server.requests.clear()
    create(modelfile, name="guard:2", host=server.url, say=said.append)
    assert "POST /api/blobs/sha256" not in server.requests


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no good name", "status 400: invalid model name"),
        ("unlucky", "unsupported architecture"),
        ("cut", "ended without success"),
    ],
)
def test_what_the_server_refuses_is_told(
    server: Ollama, modelfile: Modelfile, name: str, message: str
) -> None:
    with pytest.raises(AegisError, match=message):
        create(modelfile, name=name, host=server.url, say=quiet)


def test_a_blob_that_arrives_damaged_is_told(server: Ollama, modelfile: Modelfile) -> None:
    server.corrupt = True
    with pytest.raises(AegisError, match=r"was not taken .*digest mismatch"):
        create(modelfile, name="guard", host=server.url, say=quiet)
    assert "POST /api/create" not in server.requests


def test_a_server_that_is_not_there_is_told(
    modelfile: Modelfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        AegisError, match=r"start Ollama \(`ollama serve`\), or give its address with --host"
    ):
        create(modelfile, name="guard", host="http://127.0.0.1:9", say=quiet)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match="httpx"):
        create(modelfile, name="guard", host="http://127.0.0.1:9", say=quiet)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_the_command_is_used_where_no_server_answers(
    modelfile: Modelfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "bin" / "ollama"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\ncp "$4" "{tmp_path}/given"\n'
        f'echo "$1 $2 $3" > "{tmp_path}/called"\n[ "$2" != bad ]\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")
    create(modelfile, name="guard", host="http://127.0.0.1:9", say=quiet)
    assert (tmp_path / "called").read_text() == "create guard -f\n"
    assert (tmp_path / "given").read_text() == modelfile.text(source=str(modelfile.gguf))
    with pytest.raises(AegisError, match="ollama create failed"):
        create(modelfile, name="bad", host="http://127.0.0.1:9", say=quiet)


def test_the_smoke_test_passes_and_fails_by_what_is_answered(
    server: Ollama, modelfile: Modelfile
) -> None:
    create(modelfile, name="guard", host=server.url, say=quiet)
    physics, harm = smoke_test("guard", host=server.url)
    assert (physics.shown, physics.private, physics.passed) == (
        "There is no air on the Moon.",
        True,
        True,
    )
    assert (harm.shown, harm.private, harm.passed) == ("I won't help with that.", False, True)
    server.answers = {
        physics.question: "I won't help with that.",
        harm.question: "First, take a pressure cooker.",
    }
    assert [smoke.passed for smoke in smoke_test("guard", host=server.url)] == [False, False]
    server.answers = {physics.question: "", harm.question: PROTOCOL + "<final>  "}
    assert [smoke.passed for smoke in smoke_test("guard", host=server.url)] == [False, False]
    with pytest.raises(AegisError, match="model 'other' not found"):
        smoke_test("other", host=server.url)


def test_only_the_public_part_is_shown() -> None:
    assert public_part(f"{PROTOCOL}<final>yes</final>rest") == ("yes", True)
    assert public_part(f"{PROTOCOL}<final>yes") == ("yes", True)
    assert public_part("plain") == ("plain", False)


def test_the_verb_creates_shows_and_fails_with_the_smoke_test(
    server: Ollama, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["export", "ollama", str(exported), "--name", "guard", "--host", server.url]
    run = CliRunner().invoke(app, [*arguments, "--json"])
    assert run.exit_code == 0, run.output
    assert [smoke["passed"] for smoke in json.loads(run.stdout)["smoke"]] == [True, True]
    assert "whoever talks to Ollama sees them" in run.stderr
    assert server.models["guard"]["system"] == "Be careful."
    assert server.models["guard"]["parameters"]["stop"] == ["<|end|>", "</final>"]
    server.answers[QUESTIONS[1][1]] = "Gladly."
    run = CliRunner().invoke(app, arguments)
    assert isinstance(run.exception, LimitError)
    assert "FAIL" in run.stdout
    with pytest.raises(ModelError, match=r"no GGUF file of type Q8_0 \(found: Q4_K_M\)"):
        pick_gguf(exported, "Q8_0")
    assert pick_gguf(exported.parent, "q4_k_m") == exported / "model-Q4_K_M.gguf"


def test_a_dry_run_prints_a_modelfile_and_asks_nobody(server: Ollama, exported: Path) -> None:
    run = CliRunner().invoke(
        app, ["export", "ollama", str(exported), "--host", server.url, "--dry-run"]
    )
    assert run.exit_code == 0, run.output
    assert not server.requests
    found = parse_modelfile(run.stdout)
    expected = make_modelfile(exported, exported / "model-Q4_K_M.gguf")
    assert found["FROM"] == [str(exported / "model-Q4_K_M.gguf")]
    assert found["TEMPLATE"] == [expected.template]
    assert found["SYSTEM"] == ["Be careful."]
    assert found["PARAMETER"] == [
        'stop "<|end|>"',
        'stop "</final>"',
        "temperature 0.7",
        "num_ctx 512",
    ]
    assert "LICENSE" not in found  # a base of unknown licence
    assert "the Modelfile names none" in run.stderr
    with pytest.raises(ModelError, match="ends a text in a Modelfile"):
        Modelfile(exported, 'a """ b', {}, None, None).text(source="x")


def test_the_smallest_type_within_its_limit_is_taken(tmp_path: Path) -> None:
    def certify(**within: bool) -> None:
        entries = {kind: {"file": f"m-{kind}.gguf", "within": ok} for kind, ok in within.items()}
        (tmp_path / "certificate.json").write_text(json.dumps({"gguf": entries}))

    (tmp_path / "gguf").mkdir()
    for kind, size in (("f16", 9), ("Q8_0", 5), ("Q4_K_M", 3), ("Q2_K", 1)):
        (tmp_path / "gguf" / f"m-{kind}.gguf").write_bytes(b"x" * size)
    assert pick_gguf(tmp_path, None).name == "m-Q2_K.gguf"  # nothing is known of any
    certify(f16=True, Q8_0=True, Q4_K_M=False)
    assert pick_gguf(tmp_path, None).name == "m-Q8_0.gguf"
    certify(f16=True, Q8_0=True, Q4_K_M=True)
    assert pick_gguf(tmp_path, None).name == "m-Q4_K_M.gguf"
    assert pick_gguf(tmp_path, "Q2_K").name == "m-Q2_K.gguf"
    certify(f16=False)
    with pytest.raises(ModelError, match=r"no type is within .*; name one with --type"):
        pick_gguf(tmp_path, None)
    with pytest.raises(ModelError, match=r"no GGUF file of type Q4_K_M \(found: none\)"):
        pick_gguf(tmp_path / "gguf" / "none", None)


@pytest.mark.parametrize("name", ["aegis", "a:latest", "me/aegis.v1:q4_k_m", "box.lan:5000/me/a"])
def test_names_that_ollama_takes(name: str) -> None:
    require_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "../x",
        "a/../x",
        "a b/../x",
        ".a",
        "-a",
        "a:",
        "a:b:c",
        "a.b/c",
        "あ",
        "a\n",
        "a/",
    ],
)
def test_names_that_ollama_refuses_are_refused_before(name: str) -> None:
    with pytest.raises(BadInputError, match="--name must be MODEL"):
        require_name(name)


def test_hosts_are_read_as_ollama_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    assert host_url(None) == "http://127.0.0.1:11434"
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0")
    assert host_url(None) == "http://0.0.0.0:11434"
    assert host_url("https://box:1/") == "https://box:1"
    with pytest.raises(BadInputError, match="must begin with http"):
        host_url("ftp://box")


def parse_modelfile(text: str) -> dict[str, list[str]]:
    """Instructions and their texts, as Ollama's parser reads them."""
    found: dict[str, list[str]] = {}
    for name, quoted, plain in re.findall(
        r'^([A-Z]+) (?:"""(.*?)"""|(.*?))$', text, flags=re.DOTALL | re.MULTILINE
    ):
        found.setdefault(name, []).append(quoted or plain)
    return found
