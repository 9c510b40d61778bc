"""A small program that behaves like the command lines that write, and misbehaves on demand.

It needs the standard library alone, rejects flags that it does not know, reads its stdin to the
end, makes noise on stderr, and notes when each call begins and ends, so that "paid once" shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FLAGS = {
    "codex": {"--json", "--ephemeral", "--ignore-user-config", "--ignore-rules", "-s", "read-only"}
    | {"--skip-git-repo-check", "--disable", "shell_tool", "unified_exec", "--output-schema", "-"}
    | {"exec", "-m"},
    "gemini": {"-o", "json", "--approval-mode", "plan", "--skip-trust", "-m"},
    "claude": {"-p", "--output-format", "json", "--tools", "", "--no-session-persistence"}
    | {"--strict-mcp-config", "--setting-sources", "--model"},
    "plain": set(),
}
FAILS = {"busy": "HTTP 429 Too Many Requests: try again in 20 ms", "expired": "401: login expired"}
USED = {"input_tokens": 120, "output_tokens": 40}


def install(folder: Path, name: str, mode: str = "good", *, like: str | None = None) -> Path:
    """Write the program `name` into `folder/bin`; what it notes goes to `folder/calls`."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    path = folder / "bin" / name
    here, calls = str(Path(__file__).parent), str(folder / "calls")
    path.write_text(
        f"#!{sys.executable} -SE\nimport sys\nsys.path.insert(0, {here!r})\n"
        f"from stand_in import main\nmain({like or name!r}, {mode!r}, {calls!r})\n"
    )
    path.chmod(0o755)
    return path


def calls(folder: Path) -> list[tuple[str, str]]:
    """Return what was noted: `begun` or `ended`, and the prompt's hash."""
    path = folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(words[0], words[1]) for words in map(str.split, lines)]


def digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def good_answer(prompt: str) -> dict[str, Any]:
    """Return a right answer to a prompt of any step."""
    japanese = re.search("[\u3040-\u30ff]", prompt) is not None
    number = int(digest(prompt), 16) % 1000
    text = f"決まりは{number}番です。" if japanese else f"The rule has number {number}."
    if '"facts"' in prompt:
        return {"facts": [{"statement": text, "source": "Book 1"}]}
    if '"questions"' in prompt:
        found = re.search(r"Write (\d+) questions|日本語で(\d+)個", prompt)
        count = int(next(filter(None, found.groups()))) if found else 1
        return {"questions": [f"{text[:-1]} {n}?" for n in range(count)]}
    fields = dict.fromkeys(("task", "safety", "policy", "plan"), text)
    hand = "担当者に引き継ぎます。" if japanese else "I am passing this on to a person in charge."
    if '"flaw"' in prompt:
        return {"flaw": text, **fields, "decision": "ESCALATION", "answer": f"{hand}{number}"}
    decision = "ESCALATION" if re.search(r"(?:is|は) ESCALATION", prompt) else "ALLOW"
    return {**fields, "decision": decision, "answer": hand if decision != "ALLOW" else text}


def main(name: str, mode: str, place: str) -> None:
    arguments = sys.argv[1:]
    if arguments in (["login", "status"], ["auth", "status"]):
        print("Not logged in" if mode == "logged out" else "Logged in")
        sys.exit(mode == "logged out")
    values = {arguments[n + 1] for n, word in enumerate(arguments) if word in ("-m", "--model")}
    values |= {word for word in arguments if word.endswith("schema.json")}
    if unknown := [word for word in arguments if word not in FLAGS[name] | values]:
        print(f"error: unexpected argument {unknown[0]!r}", file=sys.stderr)
        sys.exit(2)
    prompt = sys.stdin.buffer.read().decode()
    _note(place, "begun", prompt)
    print("warning: noise \x1b[31m{\x1b[0m\nmore of it", file=sys.stderr)
    answer = json.dumps(good_answer(prompt), ensure_ascii=False)
    earlier = Path(place).read_text().count(f"begun {digest(prompt)}")
    if mode == "slow" or (mode == "slow once" and earlier == 1):
        time.sleep(60)
    if mode == "some ms":
        time.sleep(0.03)
    if mode == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        Path(f"{place}.child").write_text(str(child.pid))
    if mode == "huge":
        while True:
            sys.stdout.write("x" * 65536)
    if mode in FAILS or (mode == "busy twice" and earlier <= 2):
        _fail(name, FAILS["busy" if mode == "busy twice" else mode])
    if mode == "failing":
        sys.exit(3)
    if mode == "garbage":
        sys.stdout.buffer.write(os.urandom(3000) + b"\n{\n")
        sys.exit(0)
    if mode == "half":
        answer = answer[: len(answer) // 2]
    if mode == "half once" and "could not be used" not in prompt and "使えません" not in prompt:
        answer = answer[: len(answer) // 2]
    if mode == "fenced":
        answer = f"Here it is:\n```json\n{answer}\n```\nAnything else?"
    if mode == "empty":
        answer = ""
    _note(place, "ended", prompt)
    _succeed(name, answer, torn=mode == "torn")


def _note(place: str, word: str, prompt: str) -> None:
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{word} {digest(prompt)}\n".encode())
    os.close(descriptor)


def _fail(name: str, reason: str) -> None:
    if name == "codex":
        print(json.dumps({"type": "turn.failed", "error": {"message": reason}}))
    elif name == "gemini":
        print(json.dumps({"error": {"message": reason}}), file=sys.stderr)
        sys.exit(41 if "401" in reason else 1)
    elif name == "claude":
        told = {"type": "result", "subtype": "success", "is_error": True, "result": reason}
        print(json.dumps(told))
    else:
        print(reason, file=sys.stderr)
    sys.exit(1)


def _succeed(name: str, answer: str, *, torn: bool) -> None:
    if name == "codex":
        noise = {"type": "item.completed", "item": {"type": "error", "message": "a warning"}}
        item = {"type": "item.completed", "item": {"type": "agent_message", "text": answer}}
        rows = [{"type": "thread.started"}, noise, item, {"type": "turn.completed", "usage": USED}]
        lines = [json.dumps(row) for row in rows]
        print("\n".join(lines)[: -20 if torn else None])
    elif name == "gemini":
        tokens = {"prompt": 120, "candidates": 30, "thoughts": 10}
        stats = {"models": {"gemini-2.5-flash": {"tokens": tokens}}}
        print("Loaded cached credentials.")
        print(json.dumps({"session_id": "1", "response": answer, "stats": stats}, indent=1))
    elif name == "claude":
        told = {"type": "result", "is_error": False, "result": answer, "usage": USED}
        print(json.dumps({**told, "total_cost_usd": 0.01}))
    else:
        print(answer)
