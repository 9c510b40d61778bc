"""Ask a model every item of a task that it has not been asked before."""

from __future__ import annotations

import dataclasses
import datetime
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from aegis import __version__
from aegis.engine.scoring import Row, RowBatch, Scorer, deal, encode_pair
from aegis.engine.text_server import TextServer
from aegis.errors import AegisError
from aegis.evaluate.benchmarks.items import Benchmark, Item
from aegis.evaluate.benchmarks.letters import LetterItem, by_letter
from aegis.evaluate.benchmarks.models import NamedModel
from aegis.evaluate.benchmarks.store import ItemKey, ItemStore
from aegis.evaluate.results import (
    ItemResult,
    ModelInfo,
    TaskInfo,
    TaskResult,
    by_category,
    measures_of,
    save_task,
)
from aegis.runs.reporter import bar
from aegis.runs.signals import Interrupt
from aegis.storage.files import fingerprint, make_folder
from aegis.storage.lock import only_process

Answerer = Scorer | TextServer
ITEMS_FILE = "items.sqlite"
_WRITTEN_AT_ONCE = 16


@dataclass(frozen=True)
class Evaluation:
    """Where results go and how they are reported.

    Args:
        store: the items as they come.
        check: called after each batch; raises StoppedError if a stop was asked for.
    """

    store: ItemStore
    confidence: float = 0.95
    check: Callable[[], None] = lambda: None


def evaluate_models(
    models: Sequence[NamedModel[Any]],
    benchmarks: Sequence[Benchmark],
    output: Path,
    *,
    limit: int | None = None,
    confidence: float = 0.95,
) -> list[TaskResult]:
    """Write each model's result on each task below `output`, and return them; one model is in
    memory at a time.

    Raises:
        AegisError: if another process is at work there, or as `evaluate_task` does.
    """
    results = []
    with only_process(output), Interrupt() as interrupt:
        evaluation = Evaluation(ItemStore(output / ITEMS_FILE), confidence, interrupt.check)
        for named in models:
            loaded: list[Answerer] = []

            def scorer(named: NamedModel[Any] = named, loaded: list[Answerer] = loaded) -> Answerer:
                loaded[:] = loaded or [named.load()]
                return loaded[0]

            for benchmark in benchmarks:
                result = evaluate_task(evaluation, named.info, scorer, benchmark, limit=limit)
                make_folder(output / named.info.folder)
                save_task(output / named.info.folder, result)
                results.append(result)
            for each in loaded:
                if not isinstance(each, TextServer):
                    each.close()
    return results


def evaluate_task(
    evaluation: Evaluation,
    model: ModelInfo,
    scorer: Callable[[], Answerer],
    benchmark: Benchmark,
    *,
    limit: int | None = None,
) -> TaskResult:
    """Return the model's result on a task; what was asked before is not asked again.

    The batches depend on the items alone, those of earlier runs included, so that a run that was
    killed ends with the numbers of one that was not.

    Args:
        scorer: called only where something is still to be asked.

    Raises:
        AegisError: if the model's numbers are not finite.
        StoppedError: if a stop was asked for; what was finished is kept.
    """
    scoring = "generation" if benchmark.writes else "log-likelihood"
    if model.engine == "http" and not benchmark.writes:
        benchmark, scoring = by_letter(benchmark), "letter"
    prompts = fingerprint([item.prompt_hash for item in benchmark.items])
    asked = (benchmark.name, benchmark.version, benchmark.shots, benchmark.harness)
    task = TaskInfo(*asked, scoring, prompts, limit)
    keys = [ItemKey(*item.key) for item in benchmark.items]
    known = evaluation.store.items(model, task)
    missing = sum(key not in known for key in keys)
    total = len(keys)
    with bar(f"{model.name} {task.name}", total, done=total - missing) as advance:
        batches = _batches(scorer(), benchmark) if missing else iter(())
        for members, ask in batches:
            wanted = [index for index in members if keys[index] not in known]
            if not wanted:
                continue
            results = ask(wanted)
            _require_finite(results, model)
            evaluation.store.add(model, task, results)
            known |= {keys[index]: item for index, item in zip(wanted, results, strict=True)}
            advance(len(wanted))
            evaluation.check()
    items = tuple(known[key] for key in keys)
    return TaskResult(
        model=model,
        task=task,
        n=total,
        confidence=evaluation.confidence,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        aegis_version=__version__,
        environment=_environment(),
        measures=measures_of(items, evaluation.confidence),
        categories=by_category(items, evaluation.confidence),
        items=items,
    )


_Ask = Callable[[Sequence[int]], list[ItemResult]]


def _batches(scorer: Answerer, benchmark: Benchmark) -> Iterator[tuple[list[int], _Ask]]:
    """Yield the items of each batch by index, and what asks some of them."""
    items = benchmark.items
    if isinstance(scorer, TextServer):
        yield from (([index], partial(_served, scorer, items)) for index in range(len(items)))
        return
    if benchmark.writes:
        yield from _written(scorer, items)
        return
    rows = [
        Row.of([encode_pair(scorer, *pair) for pair in item.pairs], scorer.context)
        for item in items
    ]
    for batch in deal(rows):

        def ask(wanted: Sequence[int], batch: RowBatch = batch) -> list[ItemResult]:
            part = dataclasses.replace(batch, members=list(wanted))
            scores = scorer.score(part, [rows[index] for index in wanted])
            pairs = zip(wanted, scores, strict=True)
            return [items[index].weighed(score) for index, score in pairs]

        yield batch.members, ask


def _written(scorer: Scorer, items: Sequence[Item]) -> Iterator[tuple[list[int], _Ask]]:
    prompts = [scorer.ids(item.prompt) for item in items]

    def ask(wanted: Sequence[int]) -> list[ItemResult]:
        first = items[wanted[0]]
        ids = [prompts[index] for index in wanted]
        texts = scorer.write(ids, first.stops, first.most_tokens)
        return [items[index].written(text) for index, text in zip(wanted, texts, strict=True)]

    order = sorted(range(len(items)), key=lambda index: len(prompts[index]))
    for begin in range(0, len(order), _WRITTEN_AT_ONCE):
        yield order[begin : begin + _WRITTEN_AT_ONCE], ask


def _served(server: TextServer, items: Sequence[Item], wanted: Sequence[int]) -> list[ItemResult]:
    asked = [items[index] for index in wanted]
    return [
        item.written(
            server.write(
                item.prompt, item.stops, item.most_tokens, chat=isinstance(item, LetterItem)
            )
        )
        for item in asked
    ]


def _require_finite(results: Sequence[ItemResult], model: ModelInfo) -> None:
    for result in results:
        if not all(map(math.isfinite, result.log_probs)):
            raise AegisError(
                f"{model.path}: gives log-probabilities that are not finite on "
                f"{result.category} {result.doc_id} in {model.dtype}; give --dtype float32"
            )


def _environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
