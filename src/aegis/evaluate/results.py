"""Results of benchmarks, one JSON file a model and task, every item with it: written and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError
from scipy.stats import binomtest, norm

from aegis.errors import DataError
from aegis.storage.files import write_text

SCHEMA = "aegis-benchmarks-1"


@dataclass(frozen=True)
class ItemResult:
    """What a model made of one item.

    Args:
        category: the subject, where a task has several; otherwise the task's name.
        doc_hash, target_hash: of the item and of its right answer, whatever it was asked with.
        prompt_hash: of all that the model was given.
        log_probs: log P(choice | context) of each choice, the sum over its tokens.
        chosen: the most probable choice.
        target: the right choice, or the text to be matched.
        response: what the model wrote.
        extracted: the answer in the response, by the name of the rule that takes it out.
        scores: by measure, 0 or 1 for most.
    """

    category: str
    doc_id: int
    doc_hash: str
    target_hash: str
    prompt_hash: str
    target: int | str
    scores: dict[str, float]
    log_probs: tuple[float, ...] = ()
    chosen: int | None = None
    response: str = ""
    extracted: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """A mean over n items with its interval."""

    value: float
    n: int
    interval: tuple[float, float]

    @classmethod
    def of(cls, scores: Sequence[float], confidence: float) -> Measure:
        """Return the mean; its interval is the exact binomial one where all scores are 0 or 1, and
        the normal approximation elsewhere."""
        values, n = np.asarray(scores, dtype=float), len(scores)
        mean = float(values.mean())
        if np.isin(values, (0, 1)).all():
            low, high = binomtest(int(values.sum()), n).proportion_ci(confidence, method="exact")
        else:
            error = float(values.std(ddof=1)) / n**0.5 if n > 1 else 0.0
            reach = float(norm.ppf((1 + confidence) / 2)) * error
            low, high = mean - reach, mean + reach
        return cls(mean, n, (float(low), float(high)))


@dataclass(frozen=True)
class ModelInfo:
    """The model that was asked.

    Args:
        path: as the user gave it.
        content: sha256 of its files, or of what a server says of it.
        kind: `hf`, `adapter`, `gguf`, `ollama` or `openai`.
        engine: `transformers`, `llama.cpp` or `http`.
        dtype: in which it computed; empty where nobody tells.
        made_from: names, paths or content hashes of what it was trained or converted from.
    """

    name: str
    path: str
    content: str
    kind: str
    engine: str
    dtype: str = ""
    made_from: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of its results' folder."""
        return f"{self.name}-{self.content[:8]}"


@dataclass(frozen=True)
class TaskInfo:
    """What was asked.

    Args:
        version: the task's own; a new one is another task.
        shots: examples before each item.
        harness: where task and prompts come from, with its version.
        scoring: `log-likelihood` of each choice, `generation`, or `letter` (the choices shown, and
            the letter of one written).
        prompts: sha256 over the items' prompt hashes.
        limit: the most items asked; None for all.
    """

    name: str
    version: str
    shots: int
    harness: str
    scoring: str
    prompts: str = ""
    limit: int | None = None


Measures = dict[str, Measure]


@dataclass(frozen=True)
class TaskResult:
    """One model's result on one task.

    Args:
        measures: over all items; the first is the one that counts.
        categories: the same for each, where there are several.
    """

    model: ModelInfo
    task: TaskInfo
    n: int
    confidence: float
    created: str
    aegis_version: str
    environment: dict[str, str]
    measures: Measures
    categories: dict[str, Measures]
    items: tuple[ItemResult, ...]
    schema: str = SCHEMA

    @property
    def main(self) -> str:
        """The measure that counts: acc_norm where there is one."""
        return "acc_norm" if "acc_norm" in self.measures else next(iter(self.measures))


@dataclass(frozen=True)
class BenchmarkRun:
    """One model's results, one for each task, read from a folder."""

    folder: Path
    model: ModelInfo
    tasks: dict[str, TaskResult]


_TASK_RESULT = TypeAdapter(TaskResult)


def measures_of(items: Sequence[ItemResult], confidence: float) -> Measures:
    """Return every measure that the items have, over those of them that have it."""
    names = dict.fromkeys(name for item in items for name in item.scores)
    scores = {n: [item.scores[n] for item in items if n in item.scores] for n in names}
    return {name: Measure.of(values, confidence) for name, values in scores.items()}


def by_category(items: Sequence[ItemResult], confidence: float) -> dict[str, Measures]:
    """Return the measures of each category; empty where there is one only."""
    names = dict.fromkeys(item.category for item in items)
    if len(names) < 2:
        return {}
    parts = {name: [item for item in items if item.category == name] for name in names}
    return {name: measures_of(part, confidence) for name, part in parts.items()}


def save_task(folder: Path, result: TaskResult) -> Path:
    """Write TASK.json into the folder of the model's results, and return its path."""
    path = folder / f"{result.task.name}.json"
    items = [json.dumps(asdict(item), ensure_ascii=False) for item in result.items]
    head = {key: value for key, value in asdict(result).items() if key != "items"}
    text = json.dumps({"schema": SCHEMA, **head}, ensure_ascii=False, indent=1, allow_nan=False)
    lines = ",\n  ".join(items)
    write_text(path, f'{text.removesuffix("}").rstrip()},\n "items": [\n  {lines}\n ]\n}}\n')
    return path


def load_task(path: Path) -> TaskResult:
    """Read what `save_task` wrote.

    Raises:
        DataError: if it is no such file, naming the first field that is wrong.
    """
    try:
        result = _TASK_RESULT.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path}: {place}: {first['msg']}; give a file that `aegis evaluate benchmarks` wrote"
        ) from error
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; name a benchmark's result") from None
    if result.schema != SCHEMA:
        raise DataError(f"{path}: schema must be {SCHEMA}, got {result.schema!r}; evaluate again")
    return result


def load_run(folder: Path) -> BenchmarkRun:
    """Read all results of one model.

    Raises:
        DataError: if there is none, one is no result, or they are of several models.
    """
    results = [load_task(path) for path in sorted(folder.glob("*.json"))]
    if not results:
        raise DataError(f"{folder}: holds no results; run `aegis evaluate benchmarks … -o` first")
    first = results[0]
    for result in results:
        if result.model.content != first.model.content:
            raise DataError(
                f"{folder}: {result.task.name} is of {result.model.name}, {first.task.name} of "
                f"{first.model.name}; keep one model's results in a folder"
            )
    return BenchmarkRun(folder, first.model, {result.task.name: result for result in results})


def load_runs(folder: Path) -> list[BenchmarkRun]:
    """Read the results of every model under what `-o` named, or of the one whose folder this is.

    Raises:
        DataError: as `load_run` does.
    """
    folders = sorted({path.parent for path in folder.glob("*/*.json")})
    return [load_run(part) for part in folders] or [load_run(folder)]
