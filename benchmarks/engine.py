"""Claim: a GGUF file decides as its model folder does, and the engine that serves it writes faster
than transformers.

Agreement: the same records through the judge (transformers, as it runs on this machine, or in
float32 with --exact) and through the engine; the share of equal decisions, item by item. Speed: the
same prompts, limits and temperature through the engine and through the sampler (transformers, in
the type that it serves in), alternating round by round in one process; tokens of whole responses a
second, tags included, prompts read anew each time. One request: one after the other. Eight: eight
threads here, one batch of eight there, which is the sampler's best case, for it needs all eight at
once. Each side has the same number of threads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from claims import Claim, mean, report
from gate import ratio

from aegis.data.records import parse_record, read_jsonl
from aegis.engine.judge import Judge
from aegis.engine.llamacpp_engine import LlamaCppEngine, find_gguf
from aegis.engine.local_thinker import LocalThinker
from aegis.engine.protocol import ThinkingRequest
from aegis.engine.response_grammar import Limits, Sampling
from aegis.engine.response_sampler import ResponseSampler
from aegis.engine.verdict import Verdict
from aegis.protocol.decisions import Decision
from aegis.runs.reporter import bar

LIMITS = Limits(section=24, final=48)
AGREEMENT = 0.99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=Path("runs/latest/model"), help="a folded model folder"
    )
    parser.add_argument("--records", type=Path, default=Path("runs/latest/records/test.jsonl"))
    parser.add_argument(
        "--files", type=Path, nargs="*", help="GGUF files; by default the largest of the folder"
    )
    parser.add_argument(
        "--items", type=int, default=10**6, help="at most this many records are decided about"
    )
    parser.add_argument(
        "--exact", action="store_true", help="compare with float32, also where bfloat16 is fast"
    )
    parser.add_argument("--at", type=int, nargs="*", default=[1, 8], help="requests at once")
    parser.add_argument(
        "--rounds", type=int, default=5, help="measured rounds a side; 0: agreement alone"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prompts = [record.prompt for record in read_jsonl(options.records, parse_record)[0]][
        : options.items
    ]
    expected = (
        exactly(options.model, prompts)
        if options.exact
        else decided(Judge.load(options.model), prompts)
    )
    thinker = LocalThinker.load(options.model) if options.rounds else None
    found: list[tuple[Claim, str]] = []
    lines: list[str] = []
    for file in options.files or [find_gguf(options.model)]:
        engine = LlamaCppEngine.load(options.model, file=file, threads=options.threads)
        found.append(agree(engine, file.stem, prompts, expected))
        if thinker:
            found += [
                race(engine, thinker, file.stem, prompts, count=count, rounds=options.rounds)
                for count in options.at
            ]
            rates = [
                f"{name} {decisions(one, prompts[:32]):.1f}"
                for name, one in (("engine", engine), ("transformers", thinker))
            ]
            lines.append(f"{file.stem}: decisions/s, {', '.join(rates)}")
        engine.close()
    claims, lines = [claim for claim, _ in found], [line for _, line in found] + lines
    kept = report(
        claims,
        lines=lines,
        json_path=options.json,
        details={"limits": [LIMITS.section, LIMITS.final]},
    )
    sys.exit(not kept)


def decided(engine: Any, prompts: list[str]) -> list[Verdict]:
    """Return verdicts in portions, with a bar."""
    found = []
    with bar("deciding", len(prompts)) as advance:
        for start in range(0, len(prompts), 32):
            found += engine.judge(prompts[start : start + 32])
            advance(len(found) - start)
    return found


def exactly(model: Path, prompts: list[str]) -> list[Verdict]:
    """Return the judge's verdicts with every product in float32."""
    with patch("aegis.model.device.bfloat16_is_fast", return_value=False):
        return decided(Judge.load(model), prompts)


def agree(
    engine: LlamaCppEngine, name: str, prompts: list[str], expected: list[Verdict]
) -> tuple[Claim, str]:
    """Compare item by item how often both decide alike, and how far they are apart."""
    pairs = list(zip(decided(engine, prompts), expected, strict=True))
    same = [found.decision == wanted.decision for found, wanted in pairs]
    gaps = [
        float(np.abs(np.subtract(found.probabilities, wanted.probabilities)).max())
        for found, wanted in pairs
    ]
    unsafe = (Decision.DENY, Decision.REFUSE)
    opened = sum(
        wanted.decision in unsafe and found.decision is Decision.ALLOW for found, wanted in pairs
    )
    line = (
        f"{name}: {len(same) - sum(same)} of {len(same)} differ, {opened} from DENY or REFUSE to "
        f"ALLOW; largest gap of a probability {max(gaps):.1e}, median {statistics.median(gaps):.1e}"
    )
    return Claim(
        f"{name}: decisions equal to transformers", mean(same), AGREEMENT, len(same), floor=True
    ), line


def race(
    engine: LlamaCppEngine,
    thinker: LocalThinker,
    name: str,
    prompts: list[str],
    *,
    count: int,
    rounds: int,
) -> tuple[Claim, str]:
    """Measure tokens a second of both sides, `count` requests at a time."""
    sides = {
        "engine": partial(engine_tokens, engine, count),
        "transformers": partial(peer_tokens, thinker, count),
    }
    per_token: dict[str, list[float]] = {side: [] for side in sides}
    with bar(f"{name}: {count} at once", rounds + 1) as advance:
        for number in range(rounds + 1):  # the first warms up
            group = [prompts[(8 * number + place) % len(prompts)] for place in range(max(count, 2))]
            for side, run in sides.items():
                begun = time.perf_counter()
                tokens = run(group, number)
                per_token[side].append((time.perf_counter() - begun) / tokens)
            advance()
    times = ratio(per_token["transformers"][1:], per_token["engine"][1:])
    shown = [
        f"{side} {1 / statistics.median(values[1:]):.1f} tokens/s"
        for side, values in per_token.items()
    ]
    claim = Claim(
        f"{name}: tokens/s, {count} at once, engine / transformers", times, 1.0, rounds, floor=True
    )
    return claim, f"{name}: {count} at once, {', '.join(shown)}"


def engine_tokens(engine: LlamaCppEngine, count: int, group: list[str], seed: int) -> int:
    """Return the responses' tokens to a group of prompts, `count` of them at a time."""
    before = engine.written

    def think(numbered: tuple[int, str]) -> None:
        number, prompt = numbered
        sampling = Sampling(LIMITS, 0.7, seed + number)
        engine.think([ThinkingRequest(prompt, Decision.ALLOW, sampling)])

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(think, enumerate(group)))
    return engine.written - before


def peer_tokens(thinker: LocalThinker, count: int, group: list[str], seed: int) -> int:
    """Return the same through transformers, in batches of `count`."""
    tags = thinker.sampler.tags
    sampler = ResponseSampler(thinker.model, thinker.tokenizer, tags, LIMITS)
    rows = [thinker.encoder.ids(prompt) for prompt in group]
    generator = torch.Generator(device=thinker.model.device).manual_seed(seed)
    batches = [rows[start : start + count] for start in range(0, len(rows), count)]
    return sum(
        len(path.ids)
        for batch in batches
        for path in sampler(
            batch, [Decision.ALLOW] * len(batch), temperature=0.7, generator=generator
        )
    )


def decisions(judge: Any, prompts: list[str]) -> float:
    """Measure decisions a second, the median of three times."""
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        judge.judge(prompts)
        seconds.append(time.perf_counter() - begun)
    return len(prompts) / statistics.median(seconds)


if __name__ == "__main__":
    main()
