"""An engine that says what it is told to, an audit log that can fail, and an application around
them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from aegis.engine.protocol import ThinkingRequest
from aegis.engine.response_grammar import Limits
from aegis.engine.verdict import Verdict
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import Thinking
from aegis.serve.app import build_app
from aegis.serve.escalations import CaseQueue
from aegis.serve.metrics import ServerMetrics
from aegis.serve.service import AnswerService
from aegis.serve.settings import ServeSettings
from aegis.serve.tokens import TokenFile

BODIES = {
    "task": "name a city",
    "safety": "nobody is harmed",
    "policy": "ALLOW",
    "final": "one short line",
}


def verdict(decision: Decision) -> Verdict:
    chances = [0.1, 0.1, 0.1, 0.1]
    chances[decision] = 0.7
    return Verdict(decision, tuple(chances), 1.0)


def thinking(final: str = "It is Paris.", bodies: Mapping[str, str] = BODIES) -> Thinking:
    return Thinking.from_bodies(bodies, final, where="fake")


@dataclass
class FakeEngine:
    """Says `says(prompt, seed)`, after `seconds`, judging by `judges(prompt)`."""

    says: Callable[[str, int], Thinking | None] = lambda prompt, seed: thinking()
    judges: Callable[[str], Decision] = lambda prompt: Decision.ALLOW
    seconds: float = 0.0
    name: str = "tiny"
    context: int = 50_000
    thought: int = 0
    cancelled: int = 0
    prompts: list[str] = field(default_factory=list)
    told: list[Decision] = field(default_factory=list)
    limits: list[Limits] = field(default_factory=list)
    hold: threading.Event | None = None

    def judge(self, prompts: Sequence[str]) -> list[Verdict]:
        return [verdict(self.judges(prompt)) for prompt in prompts]

    def think(self, requests: Sequence[ThinkingRequest]) -> list[Thinking | None]:
        return [self._think(request) for request in requests]

    def _think(self, request: ThinkingRequest) -> Thinking | None:
        self.told.append(request.decision)
        self.limits.append(request.sampling.limits)
        self.prompts.append(request.prompt)
        until = time.monotonic() + self.seconds
        while time.monotonic() < until or (self.hold and not self.hold.is_set()):
            if request.cancelled():
                self.cancelled += 1
                return None
            time.sleep(0.005)
        self.thought += 1
        return self.says(request.prompt, request.sampling.seed)

    def continuations(self, context: str, choices: Sequence[str]) -> list[float]:
        return [-float(len(choice)) for choice in choices]

    def prompt_tokens(self, prompt: str) -> int:
        return 3 + len(prompt.split())

    def close(self) -> None:
        pass


@dataclass
class FakeAudit:
    """Keeps entries; raises once `broken`."""

    broken: bool = False
    entries: list[Any] = field(default_factory=list)
    folder: Path | None = None
    keys: Any = None

    def append(self, entry: Any) -> int:
        if self.broken:
            raise OSError("the disk that holds " + entry.query)
        self.entries.append(entry)
        return len(self.entries)


@dataclass
class House:
    """A server and everything behind it."""

    engine: Any
    audit: FakeAudit
    cases: CaseQueue
    service: AnswerService
    metrics: ServerMetrics
    app: Any

    def client(self, **options: Any) -> TestClient:
        return TestClient(self.app, base_url="http://127.0.0.1", **options)


def house(
    folder: Path,
    engine: Any = None,
    *,
    tokens: Path | None = None,
    **limits: Any,
) -> House:
    engine, metrics = engine or FakeEngine(), ServerMetrics()
    audit: Any = FakeAudit()
    cases = CaseQueue(folder / "escalations.db")
    settings = ServeSettings(**{"answer_s": 60, "rate": 0, **limits})
    service = AnswerService(engine, audit=audit, cases=cases, settings=settings, metrics=metrics)
    token_file = TokenFile(tokens) if tokens else None
    app = build_app(service, cases, settings=settings, metrics=metrics, tokens=token_file)
    return House(engine, audit, cases, service, metrics, app)


def events(text: str) -> list[Any]:
    found = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in found if line != "[DONE]"]
