"""Claim: the server costs next to nothing beside its engine, and a decision costs a fraction of a
verdict in words.

Overhead. The same questions with the same seeds, so that both sides write the same tokens, asked by
1, 8 and 32 clients that each ask again as soon as they are answered. Bare: threads in this process
call the engine's `decide` and `think`. Served: a process of clients asks a server in this process
over HTTP, through middleware, leak check, audit log (each record fsynced) and queue. Rounds
alternate. Judged: answer tokens a second, and the median and 99th percentile of the time to an
answer, as ratios served / bare. The canary, which lengthens a prompt by some twenty tokens, is off,
so that the lengths are the same.

Decisions. The head's decisions about n prompts, against the same model asked as guard models are
asked, with the rules in the prompt (in some hundred tokens; Llama Guard's take several hundred),
and writing `{"decision": "ESCALATION"}` token by token for the same n prompts as one batch, n as
above; rounds alternate. Told too: the same verdict and one bare word of a model that needs no
rules.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Claim, median, report
from gate import ratio

from aegis.audit import AuditKeys, AuditLog
from aegis.config import GenerateSettings
from aegis.data.records import parse_record, read_jsonl
from aegis.engine.generate import complete
from aegis.engine.local_thinker import LocalThinker
from aegis.engine.protocol import Engine, ThinkingRequest
from aegis.engine.response_grammar import Limits, Sampling
from aegis.engine.transformers_engine import TransformersEngine
from aegis.serve.app import build_app
from aegis.serve.escalations import CaseQueue
from aegis.serve.metrics import ServerMetrics
from aegis.serve.server import Server, bind
from aegis.serve.service import AnswerService
from aegis.serve.settings import ServeSettings

LIMITS = Limits(section=24, final=48)
CLIENTS = (1, 8, 32)
VERDICT, WORD = '{"decision": "ESCALATION"}', "ESCALATION"
RULES = (
    "You guard an assistant. Decide about the request below.\n"
    "ALLOW: harmless, and the assistant may answer it itself.\n"
    "ESCALATION: a person has to decide, because money, health, law or somebody's safety depends "
    "on it, or because the request cannot be judged from what it says.\n"
    "DENY: harmless to others, but the rules of this service do not permit it, such as another "
    "person's data.\n"
    "REFUSE: harmful or illegal, whatever reason is given.\n\nRequest: "
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("runs/latest/model"))
    parser.add_argument("--engine", choices=("hf", "gguf"), default="hf")
    parser.add_argument("--records", type=Path, default=Path("runs/latest/records/test.jsonl"))
    parser.add_argument("--clients", type=int, nargs="*", default=CLIENTS)
    parser.add_argument("--questions", type=int, default=4, help="a client, a round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        return ask_all(json.loads(sys.stdin.read()), options.ask)
    torch.set_num_threads(options.threads)
    prompts = [record.prompt for record in read_jsonl(options.records, parse_record)[0]]
    engine, thinker = load(options.engine, options.model)
    claims: list[Claim] = []
    try:
        for clients in options.clients:
            claims += overhead(engine, prompts, clients, options.questions, options.rounds)
        for clients in options.clients:
            if thinker:
                claims += decisions(thinker, prompts, clients, options.rounds)
    finally:
        engine.close()
    details = {
        "model": str(options.model),
        "engine": options.engine,
        "limits": [LIMITS.section, LIMITS.final],
    }
    sys.exit(not report(claims, json_path=options.json, details=details))


def load(kind: str, folder: Path) -> tuple[Engine, LocalThinker | None]:
    if kind == "hf":
        thinker = LocalThinker.load(folder)
        return TransformersEngine(thinker, name="bench"), thinker
    from aegis.engine.llamacpp_engine import LlamaCppEngine

    return LlamaCppEngine.load(folder, slots=32), None


Question = tuple[str, int]
Times = tuple[float, list[float]]


def overhead(
    engine: Engine, prompts: Sequence[str], clients: int, questions: int, rounds: int
) -> list[Claim]:
    """Return the ratios served / bare, a figure a round."""
    wanted = [(prompts[number % len(prompts)], number) for number in range(clients * questions)]
    shares = [wanted[number::clients] for number in range(clients)]
    with (
        tempfile.TemporaryDirectory() as folder,
        served(engine, Path(folder), places=2 * clients) as url,
    ):
        sides: list[Callable[[], Times]] = [
            lambda: bare(engine, shares),
            lambda: asked(url, shares),
        ]
        for side in sides:
            side()
        found: list[list[Times]] = [[], []]
        for number in range(rounds):
            for side in (0, 1) if number % 2 else (1, 0):
                found[side].append(sides[side]())
    seconds = [np.array([times[0] for times in side]) for side in found]
    waits = [np.array([np.percentile(times[1], [50, 99]) for times in side]) for side in found]
    n, label = rounds, f"{clients} client{'s' if clients > 1 else ''}"
    return [
        Claim(
            f"{label}: bare / served answer tokens a second", ratio(seconds[1], seconds[0]), 1.05, n
        ),
        Claim(
            f"{label}: served / bare median wait", ratio(waits[1][:, 0], waits[0][:, 0]), 1.05, n
        ),
        Claim(
            f"{label}: served / bare 99th percentile of waits",
            ratio(waits[1][:, 1], waits[0][:, 1]),
            1.05,
            n,
        ),
    ]


def bare(engine: Engine, shares: Sequence[Sequence[Question]]) -> Times:
    def client(share: Sequence[Question]) -> list[float]:
        waits = []
        for prompt, seed in share:
            begun = time.perf_counter()
            decision = engine.judge([prompt])[0].decision
            engine.think([ThinkingRequest(prompt, decision, Sampling(LIMITS, 0.7, seed))])
            waits.append(time.perf_counter() - begun)
        return waits

    begun = time.perf_counter()
    with ThreadPoolExecutor(len(shares)) as pool:
        waits = [wait for found in pool.map(client, shares) for wait in found]
    return time.perf_counter() - begun, waits


def asked(url: str, shares: Sequence[Sequence[Question]]) -> Times:
    command = [sys.executable, __file__, "--ask", url]
    found = subprocess.run(
        command, input=json.dumps(shares), capture_output=True, text=True, check=True
    )
    seconds, waits = json.loads(found.stdout)
    return seconds, waits


def ask_all(shares: list[list[Question]], url: str) -> None:
    """Be the clients, in their own process; print the seconds that all took, and each wait."""
    import http.client

    host, port = url.removeprefix("http://").split(":")
    ready = threading.Barrier(len(shares) + 1)

    def client(share: list[Question]) -> list[float]:
        connection, waits = http.client.HTTPConnection(host, int(port), timeout=600), []
        connection.connect()
        ready.wait()
        for prompt, seed in share:
            body: dict[str, Any] = {
                "model": "bench",
                "messages": [{"role": "user", "content": prompt}],
                "seed": seed,
            }
            begun = time.perf_counter()
            connection.request(
                "POST",
                "/v1/chat/completions",
                json.dumps(body),
                {"Content-Type": "application/json"},
            )
            answer = connection.getresponse()
            answer.read()
            waits.append(time.perf_counter() - begun)
            assert answer.status == 200, answer.status
        return waits

    with ThreadPoolExecutor(len(shares)) as pool:
        futures = [pool.submit(client, share) for share in shares]
        ready.wait()
        begun = time.perf_counter()
        waits = [wait for future in futures for wait in future.result()]
        print(json.dumps([time.perf_counter() - begun, waits]))


class served:  # noqa: N801 - a context manager
    """The whole server around the engine, in a thread of this process."""

    def __init__(self, engine: Engine, folder: Path, *, places: int) -> None:
        engine.name = "bench"
        self.log = AuditLog.open(folder / "audit", AuditKeys.create(folder / "keys"))
        self.cases = CaseQueue(folder / "escalations.db")
        settings = ServeSettings(
            section_tokens=LIMITS.section,
            final_tokens=LIMITS.final,
            answer_s=600,
            places=places,
            rate=0,
            canary=False,
        )
        metrics = ServerMetrics()
        service = AnswerService(
            engine, audit=self.log, cases=self.cases, settings=settings, metrics=metrics
        )
        app = build_app(service, self.cases, settings=settings, metrics=metrics)
        self.socket = bind("127.0.0.1", 0)
        self.socket.listen(128)
        self.server = Server(app, service)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self) -> str:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.log.close()
        self.cases.close()


def decisions(thinker: LocalThinker, prompts: Sequence[str], n: int, rounds: int) -> list[Claim]:
    """Measure requests a second, head against words."""
    chosen = [prompts[number % len(prompts)] for number in range(n)]
    lengths = [
        len(thinker.tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (VERDICT, WORD)
    ]

    def written(rules: str, tokens: int) -> None:
        settings = GenerateSettings(max_new_tokens=tokens, temperature=1.0, top_p=1.0)
        asked = [f"{rules}{prompt}\nVerdict as JSON:" for prompt in chosen]
        complete(thinker.model, thinker.tokenizer, asked, settings, seed=0)

    sides: list[Callable[[], Any]] = [
        lambda: thinker.judge(chosen),
        lambda: written(RULES, lengths[0]),
        lambda: written("", lengths[0]),
        lambda: written("", lengths[1]),
    ]
    found: list[list[float]] = [[] for _ in sides]
    for number in range(-1, rounds):
        for side in range(len(sides)) if number % 2 else reversed(range(len(sides))):
            begun = time.perf_counter()
            sides[side]()
            if number >= 0:
                found[side].append(time.perf_counter() - begun)
    head, guard, bare_verdict, word = (np.array(times) for times in found)
    for label, times in (
        (f"verdict of {lengths[0]} tokens", bare_verdict),
        (f"bare word of {lengths[1]} tokens", word),
    ):
        value, low, high = median(times / head)
        print(
            f"{n} at once: decisions a second, head / {label}, no rules read: "
            f"{value:.2f} [{low:.2f}, {high:.2f}]"
        )
    name = (
        f"{n} at once: decisions a second, head / rules read and a verdict of {lengths[0]} tokens"
    )
    return [Claim(name, ratio(guard, head), 3.0, rounds, floor=True)]


if __name__ == "__main__":
    main()
