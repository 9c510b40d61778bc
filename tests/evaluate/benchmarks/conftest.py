"""A few items of every task in the files that --data-dir reads, made here."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = ("light", "water", "plant", "stone", "wind", "sugar", "metal", "bridge", "engine", "paper")

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


def phrase(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))


def _question(rng: random.Random, choices: int = 4) -> dict[str, Any]:
    return {
        "question": f"What is {phrase(rng, 2, 6)}?",
        "choices": [phrase(rng, 1, 3) for _ in range(choices)],
        "answer": rng.randrange(choices),
    }


def _story(rng: random.Random) -> dict[str, Any]:
    endings = [f"{phrase(rng, 2, 5)} [title] {phrase(rng, 1, 2)}." for _ in range(4)]
    context = f"{phrase(rng, 1, 2)}: {phrase(rng, 4, 9)}. he"
    return {"context": context, "endings": endings, "answer": rng.randrange(4)}


def _blank(rng: random.Random) -> dict[str, Any]:
    begin = f"The {phrase(rng, 2, 4)} so the"
    contexts = [f"{begin} {word}" for word in rng.sample(WORDS, 2)]
    return {"contexts": contexts, "continuation": phrase(rng, 2, 4), "answer": rng.randrange(2)}


def _sum(rng: random.Random) -> dict[str, Any]:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    return {"question": f"{a} and {b}?", "answer": f"It is {a}+{b}.\n#### {a + b}"}


def _subject(rng: random.Random, number: int) -> dict[str, Any]:
    return {"subject": ("anatomy", "virology")[number % 2], **_question(rng)}


FILES: dict[str, Callable[[random.Random, int], dict[str, Any]]] = {
    "arc_easy_test": lambda rng, _: _question(rng, rng.choice([3, 4])),
    "arc_challenge_test": lambda rng, _: _question(rng),
    "hellaswag_validation": lambda rng, _: _story(rng),
    "winogrande_validation": lambda rng, _: _blank(rng),
    "gsm8k_test": lambda rng, _: _sum(rng),
    "gsm8k_train_200": lambda rng, _: _sum(rng),
    "mmlu_test": _subject,
    "mmlu_dev": _subject,
    "jcommonsenseqa_validation": lambda rng, _: _question(rng, 5),
}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    for name, make in FILES.items():
        rng = random.Random(name)
        rows = [json.dumps(make(rng, number)) for number in range(12)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
