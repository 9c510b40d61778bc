"""Compare models by what they scored on the same items: got worse, held, or cannot tell."""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy
from scipy.stats import false_discovery_control

from aegis import __version__
from aegis.errors import DataError
from aegis.evaluate.outcomes import ModelOutcomes, Outcome, TaskOutcomes
from aegis.evaluate.paired import (
    Interval,
    MeanTest,
    PairedComparison,
    compare_outcomes,
    holm,
)
from aegis.runs.reporter import bar

Verdict = Literal["worse", "better", "held", "cannot tell"]
LEAST_CLUSTERS = 10  # with fewer, the cluster-robust error is too small to be believed
_NAMES_TOLD = 4
_OPENINGS: dict[Verdict, str] = {
    "worse": "got worse",
    "better": "got better",
    "held": "held",
    "cannot tell": "cannot tell",
}


@dataclass(frozen=True)
class Criteria:
    """What counts as a loss, and how sure a statement has to be.

    Args:
        margin: points; a smaller loss counts as none.
        alpha: of the tests, and of the intervals, which cover with 1 - alpha.
    """

    margin: float = 1.0
    alpha: float = 0.05


DEFAULT = Criteria()


@dataclass(frozen=True)
class Change:
    """One test of the family: two models on a task or on a category of it.

    Args:
        category: empty for the whole task.
        part_of: the task whose items these are some of; a part has no say in means and ranks.
        p_holm, p_bh: of the family, by Holm's method (no false alarm) and by Benjamini and
            Hochberg's (few of them).
    """

    base: str
    candidate: str
    task: str
    category: str
    measure: str
    part_of: str
    paired: PairedComparison
    p_holm: float = 1.0
    p_bh: float = 1.0
    verdict: Verdict = "cannot tell"

    @property
    def delta_points(self) -> float:
        return self.paired.delta_points


@dataclass(frozen=True)
class Overall:
    """Two models over the mean of the tasks that all models have.

    Args:
        tasks: those tasks, the ones without a difference, too.
        base_points: the base's mean.
    """

    base: str
    candidate: str
    delta_points: float
    interval_points: Interval
    p: float
    p_holm: float = 1.0
    tasks: tuple[str, ...] = ()
    base_points: float = 0.0


@dataclass(frozen=True)
class Ranked:
    """A model's mean over tasks; models that the tests do not tell apart share a rank."""

    model: str
    score: float
    rank: int


@dataclass(frozen=True)
class Comparison:
    """All that is said about two models or more.

    Args:
        sentences: what got worse, what held, what cannot be told; the first stands on top.
        categories: a family of their own.
        left_out: what could not be tested, and why.
        notes: items that had no pair or another prompt.
        models: name, folder and content hash of each.
    """

    sentences: list[str]
    criteria: Criteria
    tasks: list[Change]
    categories: list[Change]
    overall: list[Overall]
    ranking: list[Ranked]
    left_out: list[str]
    notes: list[str]
    models: list[dict[str, Any]]
    environment: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"schema": "aegis-comparison-1", **asdict(self)}


@dataclass(frozen=True)
class _Task:
    """A task as it is compared: the outcomes of each model on the same items, in one order."""

    name: str
    measure: str
    part_of: str
    outcomes: dict[str, list[Outcome]]
    notes: list[str]

    def is_equal_for(self, one: str, other: str) -> bool:
        """Return whether both models have it, and every item of it came out the same."""
        scores = [[item.score for item in self.outcomes.get(name, [])] for name in (one, other)]
        return scores[0] == scores[1] != []


def compare_models(models: Sequence[ModelOutcomes], criteria: Criteria = DEFAULT) -> Comparison:
    """Compare every pair of the models on every task that both have.

    Raises:
        DataError: if no pair shares a task, if a task was asked in different ways, or if nothing
            can be tested.
    """
    tasks = [_paired(name, having) for name, having in _shared_tasks(models).items()]
    rows, categories, left_out = list[Change](), list[Change](), list[str]()
    notes = [note for task in tasks for note in task.notes]
    with bar("comparing", len(tasks)) as advance:
        for task in tasks:
            for pair in itertools.combinations(task.outcomes, 2):
                rows += _rows(task, pair, [""], criteria, left_out)
                names = dict.fromkeys(item.category for item in task.outcomes[pair[0]])
                if len(names) > 1:
                    apart = list[str]()
                    categories += _rows(task, pair, names, criteria, apart)
                    if apart:
                        told = f"no difference that can be tested in {len(apart)} of {len(names)}"
                        notes.append(f"{task.name} ({' and '.join(pair)}): {told} categories")
            advance(1)
    if not rows:
        raise DataError(f"{left_out[0]}; compare results that differ, on more items")
    whole = [task for task in tasks if not task.part_of]
    common = [task for task in whole if len(task.outcomes) == len(models)]
    overall = _overall([model.name for model in models], common, rows, criteria.alpha)
    p_holm = holm([part.paired.p for part in rows] + [part.p for part in overall])
    overall = [
        replace(part, p_holm=p) for part, p in zip(overall, p_holm[len(rows) :], strict=True)
    ]
    rows = _judged(rows, p_holm[: len(rows)], criteria)
    tests = overall or [row for row in rows if len(common) == 1 and row.task == common[0].name]
    ranking = _ranking(common, tests, criteria) if len(models) > 2 and common else []
    return Comparison(
        sentences=_sentences([model.name for model in models], rows, tasks, ranking),
        criteria=criteria,
        tasks=rows,
        categories=_judged(categories, holm([part.paired.p for part in categories]), criteria),
        overall=overall,
        ranking=ranking,
        left_out=left_out,
        notes=notes,
        models=[
            {
                "name": model.name,
                "folder": str(model.source),
                "content": model.content,
                "made_from": list(model.made_from),
            }
            for model in models
        ],
        environment={
            "aegis": __version__,
            "python": platform.python_version(),
            "scipy": scipy.__version__,
            "platform": platform.platform(),
        },
    )


def _shared_tasks(models: Sequence[ModelOutcomes]) -> dict[str, dict[str, TaskOutcomes]]:
    """Return by task the outcomes of each model that has it, where two or more have.

    Raises:
        DataError: if there is none, or one was asked or measured in different ways.
    """
    names = dict.fromkeys(task for model in models for task in model.tasks)
    tasks = {task: {m.name: m.tasks[task] for m in models if task in m.tasks} for task in names}
    tasks = {task: having for task, having in tasks.items() if len(having) > 1}
    if not tasks:
        has = "; ".join(f"{model.name} has {', '.join(model.tasks)}" for model in models)
        raise DataError(f"no two of the models have a task in common ({has}); evaluate both on one")
    for task, having in tasks.items():
        first, *others = having
        ways = {name: {"measure": part.measure, **part.asked} for name, part in having.items()}
        for other, key in itertools.product(others, ways[first]):
            if (one := ways[first][key]) != (two := ways[other].get(key)):
                raise DataError(
                    f"{task}: {key} must be the same for both, got {one} for {first} and {two} for "
                    f"{other}; evaluate both alike"
                )
    return tasks


def _paired(task: str, having: dict[str, TaskOutcomes]) -> _Task:
    """Return the task with the items that every model was asked alike.

    Raises:
        DataError: if there is no such item.
    """
    parts, names, notes = [part.items for part in having.values()], ", ".join(having), list[str]()
    keys = [key for key in parts[0] if all(key in part for part in parts)]
    if not keys:
        raise DataError(f"{task}: {names} share no item; evaluate them on the same data")
    alike = [key for key in keys if len({part[key].prompt for part in parts}) == 1]
    if not alike:
        raise DataError(
            f"{task}: not one of {len(keys):,} items had the same prompt for {names}; evaluate "
            "them with the same prompts"
        )
    if alone := len({key for part in parts for key in part}) - len(keys):
        notes.append(f"{task}: {alone:,} items without a pair are left out")
    if drifted := len(keys) - len(alike):
        of = f"{drifted:,} of {len(keys):,} items"
        notes.append(f"{task}: prompt drift: {of} had another prompt and are left out")
    outcomes = {name: [part.items[key] for key in alike] for name, part in having.items()}
    first = next(iter(having.values()))
    return _Task(task, first.measure, first.part_of, outcomes, notes)


def _rows(
    task: _Task,
    pair: tuple[str, str],
    categories: Iterable[str],
    criteria: Criteria,
    left_out: list[str],
) -> list[Change]:
    """Return the pair's row of each category, "" being all; what cannot be tested is left out."""
    rows = list[Change]()
    for category in categories:
        base, candidate = (
            [item for item in task.outcomes[name] if category in ("", item.category)]
            for name in pair
        )
        clusters = [item.cluster for item in base]
        try:
            paired = compare_outcomes(
                np.array([item.score for item in base]),
                np.array([item.score for item in candidate]),
                clusters if len(set(clusters)) >= LEAST_CLUSTERS else None,
                margin_points=criteria.margin,
                alpha=criteria.alpha,
            )
        except DataError as error:
            name = f"{task.name}, {category}" if category else task.name
            left_out.append(f"{name} ({' and '.join(pair)}): {error}")
        else:
            about = (category, task.measure, task.part_of)
            rows.append(Change(*pair, task.name, *about, paired))
    return rows


def _judged(rows: Sequence[Change], p_holm: Sequence[float], criteria: Criteria) -> list[Change]:
    """Return the rows of a family with their adjusted p-values and what they show."""
    if not rows:
        return []
    p_bh = false_discovery_control([row.paired.p for row in rows])
    return [
        replace(row, p_holm=holm_, p_bh=float(bh), verdict=_verdict(row.paired, holm_, criteria))
        for row, holm_, bh in zip(rows, p_holm, p_bh, strict=True)
    ]


def _verdict(paired: PairedComparison, p_holm: float, criteria: Criteria) -> Verdict:
    if p_holm <= criteria.alpha:
        return "worse" if paired.delta_points < 0 else "better"
    # The lower end of the interval that is shown lies above -margin: one-sided, hence the half.
    return "held" if paired.p_noninferior <= criteria.alpha / 2 else "cannot tell"


def _overall(
    names: list[str], common: Sequence[_Task], rows: Sequence[Change], alpha: float
) -> list[Overall]:
    """Return each pair's mean over the tasks that all models have; empty where that is one."""
    overall, tasks = list[Overall](), tuple(task.name for task in common)
    for pair in itertools.combinations(names, 2):
        parts = [r.paired for r in rows if (r.base, r.candidate) == pair and r.task in tasks]
        if len(common) < 2 or not parts:
            continue
        delta = sum(part.delta_points for part in parts) / len(common)  # 0 where nothing changed
        error = math.sqrt(sum(part.error_points**2 for part in parts)) / len(common)
        test = MeanTest("mean of tasks", delta, error, sum(part.n for part in parts) - 1.0)
        about = {"tasks": tasks, "base_points": 100 * _mean_score(common, pair[0])}
        overall.append(Overall(*pair, delta, test.interval(alpha), test.p, **about))
    return overall


def _mean_score(common: Sequence[_Task], model: str) -> float:
    means = [np.mean([item.score for item in task.outcomes[model]]) for task in common]
    return float(np.mean(means))


def _ranking(
    common: Sequence[_Task], tests: Sequence[Overall | Change], criteria: Criteria
) -> list[Ranked]:
    """Rank the models: 1 and one more for each model that is better beyond chance."""
    scores = {name: _mean_score(common, name) for name in common[0].outcomes}
    losers = [
        part.base if part.delta_points > 0 else part.candidate
        for part in tests
        if part.p_holm <= criteria.alpha
    ]
    ranked = [Ranked(name, score, 1 + losers.count(name)) for name, score in scores.items()]
    return sorted(ranked, key=lambda each: (each.rank, -each.score))


def _sentences(
    names: Sequence[str], rows: Sequence[Change], tasks: Sequence[_Task], ranking: Sequence[Ranked]
) -> list[str]:
    """Return what became of each model against the first; the ranking before it, if any."""
    sentences = list[str]()
    if ranking:
        groups = itertools.groupby(ranking, key=lambda each: each.rank)
        places = [" = ".join(each.model for each in group) for _, group in groups]
        sentences.append(
            f"Ranking, = where chance may have made the difference: {' > '.join(places)}."
        )
    for name in names[1:]:
        own = [row for row in rows if (row.base, row.candidate) == (names[0], name)]
        own.sort(key=lambda row: -abs(row.paired.delta_points))
        parts = [
            f"{opening} on {_listed([f'{row.task}{_detail(row)}' for row in having])}"
            for verdict, opening in _OPENINGS.items()
            if (having := [row for row in own if row.verdict == verdict])
        ]
        if alike := [task.name for task in tasks if task.is_equal_for(names[0], name)]:
            parts.append(f"no item differs on {_listed(alike)}")
        if parts:
            sentences.append(f"{name}, against {names[0]}: {', '.join(parts)}.")
    return sentences


def _listed(names: Sequence[str]) -> str:
    if more := names[_NAMES_TOLD:]:
        names = [*names[:_NAMES_TOLD], f"{len(more)} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _detail(row: Change) -> str:
    if row.verdict in ("worse", "better"):
        return f" ({row.paired.delta_points:+.1f} points)"
    if row.verdict == "held":
        return ""
    if row.paired.needed <= row.paired.n:
        return " (the change lies too near the margin)"
    return f" (needs {row.paired.needed:,} items)"
