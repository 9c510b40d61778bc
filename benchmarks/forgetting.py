"""Claim: what the base knew is still answered. Plain questions, multiple choice by likelihood and
perplexity, base against result, paired item by item.

The base answers in its own chat; the result as it is served (decide, think, answer, check) and, to
tell a loss in the weights from one in the way of answering, in plain chat without the protocol. All
take the most probable token. Not inferior means: the paired interval's lower end is above the
margin. Public sets are read from --bench, where they are at hand.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from claims import Claim, Interval, report

from aegis.engine.judge import Judge
from aegis.evaluate.answers import Reply, compare_answers, plain_questions, spread
from aegis.evaluate.metrics import paired_difference, proportion
from aegis.evaluate.replies import load_answering, load_chat, replies
from aegis.model.base import ModelFolder, resolve_base
from aegis.runs.reporter import bar

MARGIN, LEFT_OPEN, POINT, PERPLEXITY = -0.03, 0.05, -0.01, 1.02
TEXTS = ("gsm8k_test", "mmlu_test")  # their questions are plain text that nothing was trained on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=Path("runs/latest"), help="or a run")
    parser.add_argument("--base", help="what the model was made from, if it is elsewhere by now")
    parser.add_argument("--language", choices=["en", "ja", "all"], default="en")
    parser.add_argument("--questions", type=int, default=1000, help="at most so many")
    parser.add_argument("--bench", type=Path, default=Path("../shared/data/bench"))
    parser.add_argument("--items", type=int, default=500, help="of each public set")
    parser.add_argument("--json", type=Path, help="write every figure and answer there")
    options = parser.parse_args()
    model = options.model / "model" if (options.model / "model").is_dir() else options.model
    metadata = json.loads((model / "metadata.json").read_text(encoding="utf-8"))
    base = resolve_base(options.base or metadata["base"]["spec"])
    claims, lines, answers = answered(base, model, options)
    if options.bench.is_dir():
        claims += weighed(base, model, options)
    else:
        lines.append(f"public sets: skipped, {options.bench} is not there (give --bench DIR)")
    sys.exit(not report(claims, lines=lines, json_path=options.json, details={"answers": answers}))


def answered(
    base: ModelFolder, model: Path, options: argparse.Namespace
) -> tuple[list[Claim], list[str], dict[str, Any]]:
    """Ask the plain questions in all three ways."""
    language = None if options.language == "all" else options.language
    questions = spread(plain_questions(language=language), options.questions)
    own = replies(questions, lambda: load_chat(base), label="base in its own chat")
    found: dict[str, dict[str, Any]] = {}
    served: list[Reply] = replies(questions, lambda: load_answering(model), label="as served")
    found["as served"] = compare_answers(questions, own, served)
    chat = replies(
        questions, lambda: load_chat(ModelFolder(model), base=False), label="in plain chat"
    )
    found["in plain chat"] = compare_answers(questions, own, chat)
    claims = [
        Claim(
            f"plain questions, {way} minus base", interval(f["difference"]), MARGIN, f["n"], True, 1
        )
        for way, f in found.items()
    ]
    left = found["as served"]
    outcomes = np.array([item["candidate"]["outcome"] for item in left["items"]])
    for name, hits in (
        ("escalated or declined", ~np.isin(outcomes, ["answered", "withheld"])),
        ("withheld by a check", outcomes == "withheld"),
    ):
        share = proportion(hits, left["confidence"])
        claims.append(Claim(f"plain questions {name}", interval(share), LEFT_OPEN, left["n"]))
    lines = [f"share right of {left['n']}: base {shown(left['base'])}"]
    lines += [f"  {way}: {shown(each['candidate'])}" for way, each in found.items()]
    for way, each in found.items():
        for language, part in each["per_language"].items():
            shares = f"{shown(part['candidate'])}, base {shown(part['base'])}"
            lines.append(f"  {way}, {language}, n {part['n']}: {shares}")
    return claims, lines, found


def weighed(base: ModelFolder, model: Path, options: argparse.Namespace) -> list[Claim]:
    """Score the public sets by likelihood, one model after the other."""
    sets = {
        "ARC-Easy": rows(options, "arc_easy_test", _arc),
        "HellaSwag": rows(options, "hellaswag_validation", _hellaswag),
    }
    texts = [text for name in TEXTS for text in rows(options, name, lambda row: row["question"])]
    right: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    scores: list[np.ndarray] = []
    for folder in (base.folder, model):
        judge = Judge.load(folder)
        for name, items in sets.items():
            right[name].append(chosen_right(judge, name, items))
        with bar("perplexity", len(texts)) as advance:
            scores.append(np.array([_log_probability(judge, text, advance) for text in texts]))
        sizes = np.array([len(judge.tokenizer(text)["input_ids"]) for text in texts])
    claims = [
        Claim(
            f"{name} {first.mean():.3f} → {second.mean():.3f}, difference",
            interval(paired_difference(first, second, 0.95)),
            *(POINT, len(first), True),
        )
        for name, (first, second) in right.items()
    ]
    found = perplexity_ratio(scores[0], scores[1], sizes)
    return [
        *claims,
        Claim("perplexity of plain text, result / base", found, PERPLEXITY, len(texts)),
    ]


def rows(options: argparse.Namespace, name: str, read: Callable[[Any], Any]) -> list[Any]:
    """Return as many items of a public set as asked for, drawn the same every time."""
    lines = (options.bench / f"{name}.jsonl").read_text(encoding="utf-8").strip().split("\n")
    drawn = np.random.default_rng(0).permutation(len(lines))[: options.items]
    return [read(json.loads(lines[index])) for index in drawn]


def chosen_right(judge: Judge, name: str, items: list[tuple[str, list[str], int]]) -> np.ndarray:
    """Return (n,) bool: the likeliest choice for its length in characters is the answer."""
    right = []
    with bar(name, len(items)) as advance:
        for context, choices, answer in items:
            scores = judge.continuations(context, [f" {choice}" for choice in choices])
            lengths = [len(choice) for choice in choices]
            right.append(int(np.argmax(np.divide(scores, lengths))) == answer)
            advance(1)
    return np.array(right)


def perplexity_ratio(base: np.ndarray, other: np.ndarray, tokens: np.ndarray) -> Interval:
    """Return the ratio of perplexities a token and its bootstrap interval over texts."""
    draws = np.random.default_rng(0).integers(0, len(base), (2000, len(base)))
    samples = (base - other)[draws].sum(1) / tokens[draws].sum(1)
    low, high = np.exp(np.percentile(samples, [2.5, 97.5]))
    return math.exp((base - other).sum() / tokens.sum()), float(low), float(high)


def interval(measure: dict[str, Any]) -> Interval:
    return (measure["value"], *measure["interval"])


def shown(measure: dict[str, Any]) -> str:
    value, low, high = interval(measure)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _log_probability(judge: Judge, text: str, advance: Callable[[int], None]) -> float:
    advance(1)
    return judge.continuations("", [text])[0]


def _arc(row: Any) -> tuple[str, list[str], int]:
    return f"Question: {row['question']}\nAnswer:", row["choices"], row["answer"]


def _hellaswag(row: Any) -> tuple[str, list[str], int]:
    return row["context"], row["endings"], row["answer"]


if __name__ == "__main__":
    main()
