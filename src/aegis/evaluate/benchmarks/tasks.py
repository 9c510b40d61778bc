"""Tasks of lm-evaluation-harness: their items as requests, and answers as scores by its metrics."""

from __future__ import annotations

import difflib
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aegis.errors import BadInputError, DataError, MissingPackageError
from aegis.evaluate.benchmarks.items import Benchmark, Item
from aegis.evaluate.benchmarks.local_data import (
    LOCAL_TASKS,
    Columns,
    LocalTask,
    read_examples,
    read_items,
)
from aegis.evaluate.benchmarks.shipped import SHIPPED, shipped_benchmark

_SHOTS_SEED = 1234  # lm-evaluation-harness's own
_MOST_TOKENS = 256  # of an answer, likewise


def harness() -> str:
    """Return the name and version of lm-evaluation-harness.

    Raises:
        MissingPackageError: if it is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingPackageError(
            "benchmarks need lm-evaluation-harness; run: pip install 'aegis-so8t[eval]'"
        )
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    import datasets
    import lm_eval

    datasets.disable_progress_bars()
    return f"lm_eval {lm_eval.__version__}"


def load_benchmark(
    name: str, *, data: Path | None = None, limit: int | None = None, shots: int | None = None
) -> Benchmark:
    """Return a task with its items.

    Args:
        data: folder with files of items; by default the task's own data set, from the hub.
        limit: the most items, spread evenly over the subjects where there are several.
        shots: examples before each item; by default as many as the task says.

    Raises:
        BadInputError: if there is no such task, or it asks for what cannot be had.
        DataError: if a file is missing or no items are in it.
    """
    if name in SHIPPED:
        return shipped_benchmark(name, limit=limit, shots=shots)
    known = harness()
    local = LOCAL_TASKS.get(name)
    if data is not None:
        if local is None:
            raise _unknown(name, [*LOCAL_TASKS, *SHIPPED], "with --data-dir, ")
        parts = _local_parts(local, name, data, limit, shots)
    else:
        parts = _hub_parts(name, local)
    quotas = _quotas([len(task.eval_docs) for _, task in parts], limit)
    if local and shots is None:
        shots = local.shots
    counts = {_prepare(task, shots) for _, task in parts}
    items = [
        item
        for (category, task), quota in zip(parts, quotas, strict=True)
        for item in _items(task, category, quota)
    ]
    version, first = str(parts[0][1].VERSION), items[0]
    return Benchmark(name, version, max(counts), items, not first.pairs, known)


def _local_parts(
    local: LocalTask, name: str, data: Path, limit: int | None, shots: int | None
) -> list[tuple[str, Any]]:
    """Return (category, task) for each subject, on the folder's items."""
    items, examples = read_items(local, data), read_examples(local, data)
    if not examples and (shots or 0) > 0:
        raise DataError(
            f"{data}: holds no {local.examples[0]}, which {name} takes its examples from; "
            "add it, or give --shots 0"
        )
    if "{subject}" not in local.yaml:
        return [(name, _local_task(local, local.yaml, items[:limit], examples))]
    parts = []
    for subject in dict.fromkeys(str(row["subject"]) for row in items):
        rows, shown = (
            [row for row in side if row["subject"] == subject] for side in (items, examples)
        )
        yaml = local.yaml.format(subject=subject)
        parts.append((subject, _local_task(local, yaml, rows, shown)))
    return parts


def _local_task(local: LocalTask, yaml: str, items: list[Columns], examples: list[Columns]) -> Any:
    import datasets

    settings = _official(yaml)
    asked, shown = local.splits
    parts = {asked: datasets.Dataset.from_list(items)}
    if examples:
        parts[shown] = datasets.Dataset.from_list(examples)
    else:
        for key in ("training_split", "fewshot_split"):
            settings[key] = None
        settings["num_fewshot"] = 0
    for key in ("training_split", "validation_split", "test_split"):
        settings[key] = settings.get(key) if settings.get(key) in parts else None
    settings["custom_dataset"] = lambda **_: parts
    return _task(settings)


def _official(yaml: str) -> dict[str, Any]:
    """Return an official task's settings."""
    from lm_eval import tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(tasks.__file__).parent / yaml
    if not path.is_file():
        raise DataError(f"{yaml}: lm-evaluation-harness has no such task; check the subject")
    return load_yaml(path)


def _task(settings: dict[str, Any]) -> Any:
    from lm_eval.api.task import ConfigurableTask

    own = {key: value for key, value in settings.items() if key not in ("tag", "task_list")}
    return ConfigurableTask(config=own)


def _hub_parts(name: str, local: LocalTask | None) -> list[tuple[str, Any]]:
    """Return (category, task) for each part of the task, on the data sets from the hub."""
    from lm_eval.tasks import TaskManager

    try:
        if local and "{subject}" not in local.yaml:
            return [(name, _task(_official(local.yaml)))]
        manager = TaskManager()
        if name not in manager.all_tasks:
            raise _unknown(name, [*LOCAL_TASKS, *SHIPPED, *manager.all_tasks])
        tasks = manager.load([name])["tasks"]
    except (OSError, ValueError) as error:  # what the hub and its client raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"{name}: its data set cannot be loaded ({line}); check the network, or give --data-dir"
        ) from error
    single = len(tasks) == 1
    return [
        (name if single else part.removeprefix(f"{name}_"), task) for part, task in tasks.items()
    ]


def _unknown(name: str, known: Sequence[str], when: str = "") -> BadInputError:
    near = difflib.get_close_matches(name, {*known}, n=3, cutoff=0.5)
    told = ", ".join(near or [*LOCAL_TASKS, *SHIPPED])
    nearest = "the nearest are" if near else "there are among others"
    return BadInputError(f"{when}no task is called {name!r}; {nearest} {told}")


def _quotas(sizes: Sequence[int], limit: int | None) -> list[int]:
    """Return how many of each part's items are asked, as even as their sizes allow."""
    quotas = [0] * len(sizes)
    left = sum(sizes) if limit is None else min(limit, sum(sizes))
    while left:
        for index, size in enumerate(sizes):
            if left and quotas[index] < size:
                quotas[index] += 1
                left -= 1
    return quotas


def _prepare(task: Any, shots: int | None) -> int:
    """Set how many examples stand before each item, and return it."""
    if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood", "generate_until"):
        raise BadInputError(
            f"{task.task_name}: is scored by {task.OUTPUT_TYPE}; "
            "name a task with choices or answers"
        )
    task.set_fewshot_seed(_SHOTS_SEED)
    if shots is not None:
        task.set_config("num_fewshot", shots)
    return task.config.num_fewshot or 0


def _items(task: Any, category: str, count: int) -> list[Item]:
    """Return the first items of a task, asked as lm-evaluation-harness asks them."""
    items = []
    for number, doc in task.doc_iterator(limit=count) if count else ():
        shots, begun = task.config.num_fewshot or 0, task.doc_to_prefix(doc)
        context = task.fewshot_context(doc, num_fewshot=shots, gen_prefix=begun)
        labels = (task.task_name, number, 1)
        requests = task.construct_requests(doc=doc, ctx=context, metadata=labels)
        if task.OUTPUT_TYPE != "generate_until":
            requests = requests if isinstance(requests, list) else [requests]
            pairs = tuple((request.args[0], request.args[1]) for request in requests)
            items.append(Item(task, category, number, doc, pairs=pairs))
            continue
        prompt, settings = requests.args
        until = settings.get("until") or []
        stops = tuple([until] if isinstance(until, str) else until)
        most = settings.get("max_gen_toks") or _MOST_TOKENS
        items.append(Item(task, category, number, doc, (), prompt, stops, most))
    return items
