from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aegis.errors import DataError
from aegis.evaluate.compare import Comparison, Criteria, compare_models
from aegis.evaluate.outcomes import ModelOutcomes, Outcome, TaskOutcomes, load_models
from tests.evaluate.test_outcomes import BASE, CHILD, save_benchmark, save_decisions


def outcomes(scores: np.ndarray, *, categories: int = 1, prompt: str = "") -> TaskOutcomes:
    names = [f"part {number % categories}" for number in range(len(scores))]
    items = {
        (str(number),): Outcome(float(score), prompt, name, name if categories > 1 else str(number))
        for number, (score, name) in enumerate(zip(scores, names, strict=True))
    }
    return TaskOutcomes("acc", {"shots": "0"}, items)


def model(name: str, **tasks: TaskOutcomes) -> ModelOutcomes:
    return ModelOutcomes(name, Path(name), name, (), tasks)


def scores(n: int, right: float, *, flips: float = 0.0, seed: int = 0) -> np.ndarray:
    """Scores of a model; with `flips`, that share of right items turned wrong."""
    base = np.random.default_rng(seed).random(n) < right
    turned = np.random.default_rng(seed + 1).random(n) < flips
    return (base & ~turned).astype(float)


def balanced(base: np.ndarray, each: int) -> np.ndarray:
    """The same scores but for so many turned wrong, and as many turned right."""
    turned = base.copy()
    for value in (0, 1):
        turned[np.flatnonzero(base == value)[:each]] = 1 - value
    return turned


def three_verdicts() -> Comparison:
    """Compare models of which one is worse on one task, holds on one, and cannot be told on one."""
    n = 4000
    base = scores(n, 0.6)
    other = balanced(base, 20)
    return compare_models(
        [
            model("base", worse=outcomes(base), held=outcomes(base), unknown=outcomes(base[:100])),
            model(
                "new",
                worse=outcomes(scores(n, 0.6, flips=0.1)),
                held=outcomes(other),
                unknown=outcomes(other[:100]),
            ),
        ]
    )


@pytest.fixture
def comparison() -> Comparison:
    return three_verdicts()


def test_the_sentence_says_what_got_worse_held_and_cannot_be_told(comparison: Comparison) -> None:
    verdicts = {row.task: row.verdict for row in comparison.tasks}
    assert verdicts == {"worse": "worse", "held": "held", "unknown": "cannot tell"}
    (sentence,) = comparison.sentences
    unknown = comparison.tasks[2].paired
    worse = f"{comparison.tasks[0].delta_points:+.1f}"
    assert sentence.startswith(f"new, against base: got worse on worse ({worse} points), held")
    assert sentence.endswith(
        f" points), held on held, cannot tell on unknown (needs {unknown.needed:,} items)."
    )
    assert unknown.needed > 100
    assert json.loads(json.dumps(comparison.to_json(), allow_nan=False))["schema"]
    assert comparison.overall[0].delta_points == pytest.approx(
        np.mean([row.delta_points for row in comparison.tasks])
    )


def test_p_values_are_adjusted_over_the_family(comparison: Comparison) -> None:
    raw = [row.paired.p for row in comparison.tasks]
    assert all(row.p_holm >= row.p_bh >= p for row, p in zip(comparison.tasks, raw, strict=True))
    assert comparison.tasks[0].p_holm == pytest.approx(raw[0] * 4)  # three tasks and their mean


def test_a_wider_margin_holds_more() -> None:
    base = scores(600, 0.6)
    models = [model("base", t=outcomes(base)), model("new", t=outcomes(balanced(base, 15)))]
    assert compare_models(models).tasks[0].verdict == "cannot tell"
    assert compare_models(models, Criteria(margin=3.0)).tasks[0].verdict == "held"


def test_three_models_are_ranked_with_their_ties() -> None:
    good, bad = scores(2000, 0.7), scores(2000, 0.7, flips=0.2)
    models = [model("bad", t=outcomes(bad)), model("a", t=outcomes(good))]
    compared = compare_models([*models, model("b", t=outcomes(balanced(good, 5)))])
    assert {row.model: row.rank for row in compared.ranking} == {"a": 1, "b": 1, "bad": 3}
    assert [(row.base, row.candidate) for row in compared.tasks] == [
        ("bad", "a"),
        ("bad", "b"),
        ("a", "b"),
    ]
    assert compared.sentences[0].startswith("Ranking, = where chance may")
    assert compared.sentences[0].endswith("> bad.")
    assert compared.sentences[1].startswith("a, against bad: got better on t (+")


def test_subjects_are_clusters_and_a_family_of_their_own() -> None:
    base, new = scores(1200, 0.6), scores(1200, 0.6, flips=0.1)
    models = [
        model("base", mmlu=outcomes(base, categories=12)),
        model("new", mmlu=outcomes(new, categories=12)),
    ]
    compared = compare_models(models)
    assert (compared.tasks[0].paired.test, compared.tasks[0].paired.clusters) == ("clustered t", 12)
    assert len(compared.categories) == 12
    assert {row.paired.test for row in compared.categories} == {"exact McNemar"}
    few = {name: outcomes(values, categories=3) for name, values in (("a", base), ("b", new))}
    compared = compare_models([model(name, mmlu=part) for name, part in few.items()])
    assert compared.tasks[0].paired.test == "exact McNemar"


def test_other_prompts_are_flagged_and_left_out() -> None:
    base, new = outcomes(scores(50, 0.6)), outcomes(scores(50, 0.6, flips=0.5))
    for key in [("0",), ("1",)]:
        new.items[key] = Outcome(1, "another", "part 0", "0")
    del new.items["2",]
    compared = compare_models([model("base", t=base), model("new", t=new)])
    assert compared.notes == [
        "t: 1 items without a pair are left out",
        "t: prompt drift: 2 of 49 items had another prompt and are left out",
    ]
    assert compared.tasks[0].paired.n == 47


def test_a_task_that_cannot_be_tested_leaves_the_others(tmp_path: Path) -> None:
    rows = [(str(i), "ALLOW" if i % 2 else "DENY", "ALLOW") for i in range(40)]
    other = [(i, truth, "DENY" if int(i) % 4 == 0 else "ALLOW") for i, truth, _ in rows]
    folders = [save_decisions(tmp_path / "base", rows), save_decisions(tmp_path / "new", other)]
    compared = compare_models(load_models(folders))
    assert [row.task for row in compared.tasks] == ["decisions", "unsafe prompts not allowed"]
    assert compared.tasks[1].verdict == "better"
    assert not compared.overall  # the second task's items are among the first's
    assert compared.left_out == [
        "harmless prompts allowed (base and new): "
        "the outcomes of both models are equal on all 20 items"
    ]
    assert compared.notes == [
        "decisions (base and new): no difference that can be tested in 1 of 2 categories"
    ]
    assert compared.sentences[0].endswith("no item differs on harmless prompts allowed.")


@pytest.mark.parametrize(
    ("base", "new", "reason"),
    [
        ({"a": outcomes(np.ones(3))}, {"b": outcomes(np.ones(3))}, "no two of .* task in common"),
        ({"a": outcomes(np.ones(3))}, {"a": outcomes(np.ones(3))}, "equal on all 3 items"),
        ({"a": outcomes(np.ones(1))}, {"a": outcomes(np.zeros(1))}, "needs 2 items or more, got 1"),
        ({"a": outcomes(np.ones(0))}, {"a": outcomes(np.zeros(1))}, "share no item"),
        (
            {"a": outcomes(np.ones(3), prompt="x")},
            {"a": outcomes(np.zeros(3), prompt="y")},
            "a: not one of 3 items had the same prompt for base, new",
        ),
        (
            {"a": TaskOutcomes("acc", {"shots": "5"}, outcomes(np.ones(3)).items)},
            {"a": outcomes(np.zeros(3))},
            "a: shots must be the same for both, got 5 for base and 0 for new",
        ),
    ],
)
def test_what_cannot_be_compared_is_said(
    base: dict[str, TaskOutcomes], new: dict[str, TaskOutcomes], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        compare_models([model("base", **base), model("new", **new)])


def test_a_letter_chosen_is_never_compared_with_log_likelihoods(tmp_path: Path) -> None:
    save_benchmark(tmp_path, BASE, [1, 0, 1])
    save_benchmark(tmp_path, CHILD, [1, 1, 1], scoring="letter")
    told = "scoring must be the same for both, got log-likelihood for base and letter for child"
    with pytest.raises(DataError, match=told):
        compare_models(load_models([tmp_path]))
    save_benchmark(tmp_path, BASE, [1, 0, 1], scoring="letter")
    assert compare_models(load_models([tmp_path])).tasks[0].paired.gained == 1
