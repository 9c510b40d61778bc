"""Claim: benchmarks are scored as lm-evaluation-harness's `hf` backend scores them, in a half (ARC,
HellaSwag) and a quarter (MMLU with five examples) of its time; a GGUF file in half the time that
one request a choice takes.

The same model in memory, the same items, both in one process, round by round and in turns: token
ids, log-probabilities and sums on either side. MMLU's rounds are a subject each, for its five
examples are the subject's own. The peer reads batches of --batch-size and keeps its own cache of
one-token choices.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from claims import Claim, Interval, mean, report

from aegis.engine.scoring import Row, RowBatch, Scorer, deal, encode_pair
from aegis.engine.transformers_scorer import TransformersScorer
from aegis.evaluate.benchmarks.items import Item
from aegis.evaluate.benchmarks.models import name_model
from aegis.evaluate.benchmarks.tasks import load_benchmark
from aegis.runs.reporter import bar

LIMITS = {"arc_easy": 2.0, "arc_challenge": 2.0, "hellaswag": 2.0, "mmlu": 4.0}
TASKS = (*LIMITS, "winogrande", "gsm8k")  # of the others only the answers count
ALIKE, CLOSE, ONE_BY_ONE = 0.995, 1.0, 2.0
Scores = list[list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument(
        "--gguf", type=Path, help="measures a file of the model, f16 for the claim, too"
    )
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/bench"))
    parser.add_argument("--tasks", nargs="*", default=[*TASKS], choices=TASKS)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--items", type=int, default=32, help="of a round")
    parser.add_argument("--batch-size", type=int, default=16, help="of lm-evaluation-harness")
    parser.add_argument("--written", type=int, default=20, help="items of GSM8K")
    parser.add_argument("--no-times", action="store_true", help="the answers alone")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    scorer: Any = name_model(arguments.model, precision="float32").load()
    assert isinstance(scorer, TransformersScorer)
    peer = harness(scorer, arguments.batch_size)
    claims: list[Claim] = []
    for task in arguments.tasks:
        if task == "gsm8k":
            claims.append(written_alike(scorer, peer, arguments))
            continue
        rounds = rounds_of(task, arguments)
        times, ours, theirs = in_turns(
            rounds, lambda part: score(scorer, part), partial(weighed, peer), name=task
        )
        if task in LIMITS and not arguments.no_times:
            claims.append(speed(task, times, LIMITS[task]))
        claims += agreement(task, ours, theirs)
    if arguments.gguf:
        file = name_model(str(arguments.gguf)).load()
        rounds = rounds_of("hellaswag", arguments)
        slow = (lambda part: []) if arguments.no_times else partial(one_by_one, file)
        times, found, _ = in_turns(rounds, partial(score, file), slow, name="GGUF")
        folder = [scores for part in rounds for scores in score(scorer, part)]
        if not arguments.no_times:
            claims.append(speed("GGUF, hellaswag, over one request a choice", times, ONE_BY_ONE))
        claims.append(alike("GGUF, hellaswag: same choice as the folder", found, folder, 0.99))
    sys.exit(not report(claims, json_path=arguments.json, details={"model": arguments.model}))


def rounds_of(task: str, arguments: argparse.Namespace) -> list[list[Item]]:
    """The items of each round: MMLU's first subjects, or equal parts of the first items."""
    count, size, data = arguments.rounds, arguments.items, arguments.data_dir
    if task != "mmlu":
        items = load_benchmark(task, data=data, limit=count * size, shots=0).items
        return [items[begin : begin + size] for begin in range(0, len(items), size)]
    with tempfile.TemporaryDirectory() as folder:
        lines = (data / "mmlu_test.jsonl").read_text(encoding="utf-8").rstrip().split("\n")
        subjects: dict[str, list[str]] = {}
        for line in lines:
            subjects.setdefault(json.loads(line)["subject"], []).append(line)
        kept = [lines[:size] for lines in list(subjects.values())[:count]]
        text = "\n".join(line for lines in kept for line in lines)
        (Path(folder) / "mmlu_test.jsonl").write_text(text, encoding="utf-8")
        (Path(folder) / "mmlu_dev.jsonl").write_bytes((data / "mmlu_dev.jsonl").read_bytes())
        items = load_benchmark(task, data=Path(folder), shots=5).items
    names = dict.fromkeys(item.category for item in items)
    return [[item for item in items if item.category == name] for name in names]


def in_turns(
    rounds: Sequence[list[Item]],
    first: Callable[[list[Item]], Scores],
    second: Callable[[list[Item]], Scores],
    *,
    name: str,
) -> tuple[list[tuple[float, float]], Scores, Scores]:
    """Both on every round, the one that begins in turns: seconds of each, and all scores."""
    times, scores = [], ([], [])
    first(rounds[0][:2])
    second(rounds[0][:2])
    with bar(name, len(rounds)) as advance:
        for number, part in enumerate(rounds):
            taken = [0.0, 0.0]
            for side in (0, 1) if number % 2 else (1, 0):
                begun = time.perf_counter()
                scores[side].extend((first, second)[side](part))
                taken[side] = time.perf_counter() - begun
            times.append((taken[0], taken[1]))
            advance()
    return times, *scores


def score(scorer: Scorer, items: Sequence[Item]) -> Scores:
    """Log-probabilities as `aegis evaluate benchmarks` computes them."""
    rows = rows_of(scorer, items)
    scores: Scores = [[] for _ in rows]
    for batch in deal(rows):
        answers = scorer.score(batch, [rows[index] for index in batch.members])
        for index, answer in zip(batch.members, answers, strict=True):
            scores[index] = [each.log_prob for each in answer]
    return scores


def one_by_one(scorer: Scorer, items: Sequence[Item]) -> Scores:
    """The same by a request for each choice."""
    return [
        [scorer.score(RowBatch([], [0]), [chain])[0][0].log_prob for chain in row.chains()]
        for row in rows_of(scorer, items)
    ]


def rows_of(scorer: Scorer, items: Sequence[Item]) -> list[Row]:
    return [
        Row.of([encode_pair(scorer, *pair) for pair in item.pairs], scorer.context)
        for item in items
    ]


def harness(scorer: TransformersScorer, batch_size: int) -> Any:
    """lm-evaluation-harness's `hf` backend with the same model."""
    from lm_eval.models.huggingface import HFLM

    make: Any = HFLM
    return make(pretrained=scorer.model, tokenizer=scorer.tokenizer, batch_size=batch_size)


def weighed(peer: Any, items: Sequence[Item]) -> Scores:
    """Log-probabilities as the peer computes them."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", item.doc, pair, number)
        for item in items
        for number, pair in enumerate(item.pairs)
    ]
    answers = iter(peer.loglikelihood(requests, disable_tqdm=True))
    return [[next(answers)[0] for _ in item.pairs] for item in items]


def written_alike(scorer: TransformersScorer, peer: Any, arguments: argparse.Namespace) -> Claim:
    """Whether the same answers are taken out of what both write."""
    from lm_eval.api.instance import Instance

    items = load_benchmark("gsm8k", data=arguments.data_dir, limit=arguments.written).items
    same = []
    with bar("gsm8k", len(items)) as advance:
        for item in items:
            settings = {"until": list(item.stops), "do_sample": False}
            settings["max_gen_toks"] = item.most_tokens
            request = Instance("generate_until", item.doc, (item.prompt, settings), 0)
            theirs = peer.generate_until([request], disable_tqdm=True)[0]
            ours = scorer.write([scorer.ids(item.prompt)], item.stops, item.most_tokens)[0]
            same.append(float(item.written(ours).extracted == item.written(theirs).extracted))
            advance()
    return Claim("gsm8k: same extracted answers", mean(same), 1.0, len(same), floor=True)


def speed(name: str, times: Sequence[tuple[float, float]], limit: float) -> Claim:
    ratios: Any = np.exp(mean([float(np.log(theirs / ours)) for ours, theirs in times]))
    found: Interval = (float(ratios[0]), float(ratios[1]), float(ratios[2]))
    return Claim(f"{name}: times faster", found, limit, len(times), floor=True)


def alike(name: str, ours: Scores, theirs: Scores, limit: float) -> Claim:
    same = [float(np.argmax(a) == np.argmax(b)) for a, b in zip(ours, theirs, strict=True)]
    return Claim(name, mean(same), limit, len(same), floor=True)


def agreement(name: str, ours: Scores, theirs: Scores) -> list[Claim]:
    pairs = zip(ours, theirs, strict=True)
    far = 1000 * max(abs(a - b) for mine, other in pairs for a, b in zip(mine, other, strict=True))
    n = sum(map(len, ours))
    return [
        alike(f"{name}: same choice as lm-eval", ours, theirs, ALIKE),
        Claim(f"{name}: log-probabilities apart, thousandths", (far, far, far), CLOSE, n),
    ]


if __name__ == "__main__":
    main()
