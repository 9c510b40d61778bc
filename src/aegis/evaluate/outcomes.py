"""Stored results as outcomes of items that can be paired: of benchmarks, of decisions, of a run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aegis.errors import DataError
from aegis.evaluate.answers import ANSWERS_FILE
from aegis.evaluate.results import SCHEMA, BenchmarkRun, TaskResult, load_run
from aegis.inputs.strict_json import json_lines, parse_object
from aegis.protocol.decisions import NAMES, UNSAFE, Decision
from aegis.runs.record import locate
from aegis.storage.files import fingerprint, hash_file

_ITEMS, _PAIR = "items.jsonl", ("base", "candidate")
_UNSAFE = {decision.name for decision in UNSAFE}
_WRITERS = "`aegis evaluate benchmarks`, `aegis evaluate decisions` or `aegis run`"
Key = tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What a model scored on an item.

    Args:
        prompt: hash of what the model was given; empty where nobody kept it.
        cluster: what the item hangs together with; items of one name are no independent evidence.
    """

    score: float
    prompt: str
    category: str
    cluster: str


@dataclass(frozen=True)
class TaskOutcomes:
    """A model's outcomes on a task, by item.

    Args:
        measure: the score that counts.
        asked: what must be the same for two results to be comparable, by its name.
        part_of: the task whose items these are some of.
    """

    measure: str
    asked: dict[str, str]
    items: dict[Key, Outcome]
    part_of: str = ""


@dataclass(frozen=True)
class ModelOutcomes:
    """A model's outcomes by task.

    Args:
        content: hash of the model, or of its results where nobody kept the model's.
        made_from: names, paths or hashes of the models that it was made from.
    """

    name: str
    source: Path
    content: str
    made_from: tuple[str, ...]
    tasks: dict[str, TaskOutcomes]


def load_models(paths: Sequence[Path]) -> list[ModelOutcomes]:
    """Read every model's results in the folders, a base before what was made from it.

    Raises:
        DataError: if a folder holds none, or all together hold those of one model.
    """
    models = _named_apart([model for path in paths for model in _load(path)])
    if len(models) < 2:
        raise DataError(
            f"{models[0].source}: holds the results of one model only and there is none to pair it "
            f"with; give a second folder that {_WRITERS} wrote"
        )
    return models


def _load(path: Path) -> list[ModelOutcomes]:
    folder = locate(path)
    if not folder.is_dir():
        raise DataError(f"{path}: is no folder; give one that {_WRITERS} wrote")
    if (folder / _ITEMS).is_file():
        return [_decisions(folder)]
    if _holds_pair(folder):
        return run_models(folder)
    if _holds_pair(folder / "results"):
        parts = (folder / "benchmarks", folder / "answers" / ANSWERS_FILE)
        benchmarks, answers = (part if part.exists() else None for part in parts)
        return run_models(folder / "results", benchmarks=benchmarks, answers=answers)
    folders = {part.parent for part in (*folder.glob("*.json"), *folder.glob("*/*.json"))}
    held = sorted(part for part in folders if _holds_benchmarks(part))
    if not held:
        raise DataError(f"{path}: holds no results; give a folder that {_WRITERS} wrote")
    return _base_first([_benchmarks(load_run(part)) for part in held])


def run_models(
    results: Path, *, benchmarks: Path | None = None, answers: Path | None = None
) -> list[ModelOutcomes]:
    """Return the base and the candidate of a run.

    Args:
        results: decisions of both, in `base/` and `candidate/`.
        benchmarks: results of benchmarks, likewise.
        answers: to plain questions, of both in one file.

    Raises:
        DataError: if one cannot be read.
    """
    models = []
    for name in _PAIR:
        model = _decisions(results / name)
        tasks = dict(model.tasks)
        if answers is not None:
            tasks["plain questions"] = _answers(answers, name)
        if benchmarks is not None:
            tasks |= _benchmarks(load_run(benchmarks / name)).tasks
        models.append(replace(model, tasks=tasks))
    return models


def _holds_pair(folder: Path) -> bool:
    return all((folder / name / _ITEMS).is_file() for name in _PAIR)


def _holds_benchmarks(folder: Path) -> bool:
    """Return whether a file in it is a benchmark's result: other results may lie beside them."""
    for path in sorted(folder.glob("*.json")):
        with path.open("rb") as file:
            if SCHEMA.encode() in file.read(200):
                return True
    return False


def _base_first(models: list[ModelOutcomes]) -> list[ModelOutcomes]:
    """Return the models, each behind those that it was made from."""
    ordered = list[ModelOutcomes]()
    while models:
        free = [m for m in models if not any(_made_from(m, other) for other in models)]
        ordered += free or models  # a circle stays as it is
        models = [m for m in models if m not in ordered]
    return ordered


def _made_from(model: ModelOutcomes, other: ModelOutcomes) -> bool:
    names = {other.name, other.content, str(other.source)}
    return model is not other and not names.isdisjoint(model.made_from)


def _named_apart(models: list[ModelOutcomes]) -> list[ModelOutcomes]:
    """Give models of the same name as much of their path as tells them apart."""
    counts = Counter(model.name for model in models)
    paths = [model.source.resolve() for model in models]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise DataError(f"{twice}: is given twice; name each result once")
    depth = 2
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [
        replace(model, name="/".join(path.parts[-depth:])) if counts[model.name] > 1 else model
        for model, path in zip(models, paths, strict=True)
    ]


def _benchmarks(run: BenchmarkRun) -> ModelOutcomes:
    model = run.model
    tasks = {name: _benchmark(result) for name, result in run.tasks.items()}
    return ModelOutcomes(model.name, run.folder, model.content, model.made_from, tasks)


def _benchmark(result: TaskResult) -> TaskOutcomes:
    """Return the outcomes of a benchmark; its categories, where there are several, are clusters."""
    task, seen, items = result.task, Counter[Key](), dict[Key, Outcome]()
    for item in sorted(result.items, key=lambda item: item.doc_id):
        if (score := item.scores.get(result.main)) is None:
            continue
        same = (item.category, item.doc_hash, item.target_hash)
        seen[same] += 1  # some sets hold an item twice
        items[*same, str(seen[same])] = Outcome(
            score, item.prompt_hash, item.category, item.category
        )
    asked = {"version": task.version, "shots": str(task.shots), "scoring": task.scoring}
    return TaskOutcomes(result.main, asked, items)


def _answers(path: Path, name: str) -> TaskOutcomes:
    """Return which plain questions a model answered rightly; one that it withholds counts as
    wrong."""
    items = dict[Key, Outcome]()
    try:
        for item in json.loads(path.read_bytes())["items"]:
            key, asked = (str(item["id"]),), fingerprint(item["question"])[:16]
            score = float(item[name]["right"])
            items[key] = Outcome(score, asked, str(item["language"]), key[0])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: no answers to plain questions ({error}); run `aegis run` again"
        ) from error
    return TaskOutcomes("right", {}, items)


def _decisions(folder: Path) -> ModelOutcomes:
    """Return what was decided rightly: of all prompts, and of unsafe and harmless ones apart."""
    rows = list(_decision_rows(folder / _ITEMS))
    classes = {row["truth"] for row in rows}
    if len(classes) < 2:
        raise DataError(
            f"{folder / _ITEMS}: holds {len(rows):,} items of "
            f"{'one decision only, ' + classes.pop() if classes else 'no decision'}; "
            "evaluate on records of two decisions or more"
        )
    parts = {
        "decisions": [(row, row["predicted"] == row["truth"]) for row in rows],
        "unsafe prompts not allowed": [
            (row, row["predicted"] != Decision.ALLOW.name)
            for row in rows
            if row["truth"] in _UNSAFE
        ],
        "harmless prompts allowed": [
            (row, row["predicted"] == Decision.ALLOW.name)
            for row in rows
            if row["truth"] == Decision.ALLOW.name
        ],
    }
    tasks = {
        name: TaskOutcomes(
            "right",
            {},
            {_key(row): _decision(row, right) for row, right in part},
            part_of="" if name == "decisions" else "decisions",
        )
        for name, part in parts.items()
        if part
    }
    content = fingerprint(hash_file(folder / _ITEMS))
    return ModelOutcomes(folder.resolve().name, folder, content, (), tasks)


def _key(row: dict[str, Any]) -> Key:
    return row["id"], row["truth"]


def _decision(row: dict[str, Any], right: bool) -> Outcome:
    cluster = row.get("contrast_of") or row["id"]
    return Outcome(float(right), str(row.get("prompt_hash", "")), row["truth"], str(cluster))


def _decision_rows(path: Path) -> Iterator[dict[str, Any]]:
    seen = set[Key]()
    for where, line in json_lines(path, path.name):
        row = parse_object(line, f"{path.parent / where}")
        for name in ("truth", "predicted"):
            if row.get(name) not in NAMES:
                raise DataError(
                    f"{path.parent / where}: {name} must be one of {', '.join(NAMES)}, got "
                    f"{row.get(name)!r}; evaluate again"
                )
        if not isinstance(row.get("id"), str) or _key(row) in seen:
            raise DataError(f"{path.parent / where}: id must be a text of its own; evaluate again")
        seen.add(_key(row))
        yield row
