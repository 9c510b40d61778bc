"""Files of items in a folder, brought into the columns that the official tasks' templates read."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis.errors import DataError
from aegis.inputs.strict_json import json_lines, parse_object

Columns = dict[str, Any]


def _arc(row: Columns) -> Columns:
    labels = list(string.ascii_uppercase[: len(row["choices"])])
    choices = {"text": row["choices"], "label": labels}
    return {"question": row["question"], "choices": choices, "answerKey": labels[row["answer"]]}


def _hellaswag(row: Columns) -> Columns:
    activity, _, text = row["context"].partition(": ")
    official = {"activity_label": activity, "ctx_a": text, "ctx_b": ""}
    return {**official, "endings": row["endings"], "label": str(row["answer"])}


def _winogrande(row: Columns) -> Columns:
    first, second = row["contexts"]
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    blank = len(list(alike))
    return {
        "sentence": f"{first[:blank]}_ {row['continuation']}",
        "option1": first[blank:],
        "option2": second[blank:],
        "answer": str(row["answer"] + 1),
    }


def _gsm8k(row: Columns) -> Columns:
    return {"question": row["question"], "answer": row["answer"]}


def _mmlu(row: Columns) -> Columns:
    return {name: row[name] for name in ("question", "subject", "choices", "answer")}


def _jcommonsenseqa(row: Columns) -> Columns:
    choices = {f"choice{number}": text for number, text in enumerate(row["choices"])}
    return {"question": row["question"], **choices, "label": row["answer"]}


@dataclass(frozen=True)
class LocalTask:
    """A task of the harness whose items may come from files.

    Args:
        yaml: the official task below the harness's folder of tasks, `{subject}` where there are
            several.
        items: the file with the items that are asked.
        examples: patterns of the file that --shots takes its examples from, the first that is
            there.
        columns: from a line of either to the hub's columns.
        splits: the hub's names of the two.
        shots: examples where nobody says how many; None for as many as the task says.
    """

    yaml: str
    items: str
    examples: tuple[str, ...]
    columns: Callable[[Columns], Columns]
    splits: tuple[str, str]
    shots: int | None = None


LOCAL_TASKS = {
    "arc_challenge": LocalTask(
        "arc/arc_challenge.yaml",
        "arc_challenge_test.jsonl",
        ("arc_challenge_train.jsonl",),
        _arc,
        ("test", "train"),
    ),
    "arc_easy": LocalTask(
        "arc/arc_easy.yaml",
        "arc_easy_test.jsonl",
        ("arc_easy_train.jsonl",),
        _arc,
        ("test", "train"),
    ),
    "gsm8k": LocalTask(
        "gsm8k/gsm8k.yaml",
        "gsm8k_test.jsonl",
        ("gsm8k_train.jsonl", "gsm8k_train_*.jsonl"),
        _gsm8k,
        ("test", "train"),
    ),
    "hellaswag": LocalTask(
        "hellaswag/hellaswag.yaml",
        "hellaswag_validation.jsonl",
        ("hellaswag_train.jsonl",),
        _hellaswag,
        ("validation", "train"),
    ),
    "jcommonsenseqa": LocalTask(
        "japanese_leaderboard/ja_leaderboard_jcommonsenseqa.yaml",
        "jcommonsenseqa_validation.jsonl",
        ("jcommonsenseqa_train.jsonl",),
        _jcommonsenseqa,
        ("validation", "train"),
        0,
    ),
    "mmlu": LocalTask(
        "mmlu/default/mmlu_{subject}.yaml",
        "mmlu_test.jsonl",
        ("mmlu_dev.jsonl",),
        _mmlu,
        ("test", "dev"),
    ),
    "winogrande": LocalTask(
        "winogrande/default.yaml",
        "winogrande_validation.jsonl",
        ("winogrande_train.jsonl",),
        _winogrande,
        ("validation", "train"),
    ),
}


def read_items(task: LocalTask, folder: Path) -> list[Columns]:
    """Return the items that are asked.

    Raises:
        DataError: if the file is missing, empty, or a line is not what it should be.
    """
    path = folder / task.items
    if items := list(_rows(task, path)):
        return items
    raise DataError(f"{path}: has no items; give a file with one a line")


def read_examples(task: LocalTask, folder: Path) -> list[Columns]:
    """Return what --shots takes its examples from; empty where no file is there.

    Raises:
        DataError: if a line is not what it should be.
    """
    files = (path for pattern in task.examples for path in sorted(folder.glob(pattern)))
    path = next(files, None)
    return list(_rows(task, path)) if path else []


def _rows(task: LocalTask, path: Path) -> Iterable[Columns]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; --data-dir must hold the items that are asked")
    for where, line in json_lines(path, path.name):
        row = parse_object(line, where)
        try:
            yield task.columns(row)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise DataError(
                f"{where}: not an item of this task ({type(error).__name__}: {error}); "
                "see docs/evaluation.md for the fields"
            ) from error
