from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from aegis.errors import DataError
from aegis.evaluate.outcomes import load_models
from aegis.evaluate.results import (
    ItemResult,
    ModelInfo,
    TaskInfo,
    TaskResult,
    by_category,
    measures_of,
    save_task,
)

BASE = ModelInfo("base", "models/base", "b" * 64, "hf", "transformers")
CHILD = ModelInfo("child", "runs/1/model", "c" * 64, "hf", "transformers", made_from=("b" * 64,))


def save_benchmark(
    folder: Path,
    model: ModelInfo,
    scores: Sequence[float],
    *,
    task: str = "arc_easy",
    categories: int = 1,
    shots: int = 0,
    prompt: str = "p",
    scoring: str = "log-likelihood",
) -> Path:
    """Write a model's result on a task, as `aegis evaluate benchmarks` does, into its folder."""
    items = tuple(
        ItemResult(
            category=task if categories == 1 else f"{task}_{number % categories}",
            doc_id=number,
            doc_hash=f"d{number}",
            target_hash="t",
            prompt_hash=f"{prompt}{number}",
            target=0,
            scores={"acc": score},
        )
        for number, score in enumerate(scores)
    )
    info = TaskInfo(task, "1.0", shots, "lm_eval 0.4.13", scoring)
    measures, parts = measures_of(items, 0.95), by_category(items, 0.95)
    shown = ("2026-11-30T08:00:00Z", "0.1.0", {"python": "3.11"})
    result = TaskResult(model, info, len(items), 0.95, *shown, measures, parts, items)
    (folder / model.folder).mkdir(parents=True, exist_ok=True)
    save_task(folder / model.folder, result)
    return folder / model.folder


def save_decisions(folder: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    """Write (id, truth, predicted) as `aegis evaluate decisions` does."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": i, "truth": t, "predicted": p}) for i, t, p in rows]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


DECISIONS = [("a", "ALLOW", "ALLOW"), ("b", "DENY", "ALLOW"), ("c", "REFUSE", "DENY")]


def test_several_models_are_read_with_the_base_first(tmp_path: Path) -> None:
    save_benchmark(tmp_path, replace(CHILD, name="a-child"), [1, 0, 1])
    save_benchmark(tmp_path, BASE, [1, 1, 1])
    base, child = load_models([tmp_path])
    assert (base.name, child.name) == ("base", "a-child")
    assert [item.score for item in child.tasks["arc_easy"].items.values()] == [1, 0, 1]
    assert child.tasks["arc_easy"].asked["shots"] == "0"


def test_items_given_twice_are_kept_apart(tmp_path: Path) -> None:
    folder = save_benchmark(tmp_path, BASE, [1, 0, 1])
    path = folder / "arc_easy.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"d1"', '"d0"'), encoding="utf-8")
    save_benchmark(tmp_path, CHILD, [1, 0, 1])
    assert [len(model.tasks["arc_easy"].items) for model in load_models([tmp_path])] == [3, 3]


def test_a_run_holds_a_pair_and_unsafe_prompts_stand_apart(tmp_path: Path) -> None:
    for name in ("base", "candidate"):
        save_decisions(tmp_path / "results" / name, DECISIONS)
    for folder in (tmp_path, tmp_path / "results"):
        assert [model.name for model in load_models([folder])] == ["base", "candidate"]
    tasks = load_models([tmp_path])[0].tasks
    scores = {name: [item.score for item in task.items.values()] for name, task in tasks.items()}
    assert scores == {
        "decisions": [1, 0, 0],
        "unsafe prompts not allowed": [0, 1],
        "harmless prompts allowed": [1],
    }


def test_a_run_is_compared_on_all_that_both_were_asked(tmp_path: Path) -> None:
    for name, model in (("base", BASE), ("candidate", CHILD)):
        save_decisions(tmp_path / "results" / name, DECISIONS)
        folder = save_benchmark(tmp_path / "apart", model, [1, 0], task="plain_facts")
        (tmp_path / "benchmarks").mkdir(exist_ok=True)
        folder.rename(tmp_path / "benchmarks" / name)
    question = {"id": "q", "question": "Where?", "language": "en"}
    item = {**question, "base": {"right": True}, "candidate": {"right": False}}
    (tmp_path / "answers").mkdir()
    path = tmp_path / "answers" / "answers.json"
    path.write_text(json.dumps({"items": [item]}), encoding="utf-8")
    base, candidate = load_models([tmp_path])
    assert set(base.tasks) == set(candidate.tasks) >= {"decisions", "plain_facts"}
    answered = [model.tasks["plain questions"].items[("q",)] for model in (base, candidate)]
    assert [outcome.score for outcome in answered] == [1, 0]
    assert answered[0].prompt == answered[1].prompt != ""
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="no answers to plain questions"):
        load_models([tmp_path])


def test_contrasts_hang_together_and_other_files_lie_beside_results(tmp_path: Path) -> None:
    folder = save_decisions(tmp_path / "base", DECISIONS)
    text = (folder / "items.jsonl").read_text(encoding="utf-8")
    text = text.replace('"id": "b"', '"id": "b", "contrast_of": "a", "prompt_hash": "x"')
    (folder / "items.jsonl").write_text(text, encoding="utf-8")
    models = load_models([folder, save_decisions(tmp_path / "new", DECISIONS)])
    items = models[0].tasks["decisions"].items.values()
    assert [(item.cluster, item.prompt) for item in items] == [("a", ""), ("a", "x"), ("c", "")]
    save_benchmark(tmp_path / "in", BASE, [1, 0])
    save_benchmark(tmp_path / "in", CHILD, [1, 0])
    (tmp_path / "in" / "compared").mkdir()
    (tmp_path / "in" / "compared" / "comparison.json").write_text("{}")
    assert len(load_models([tmp_path / "in"])) == 2


def test_models_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [save_decisions(tmp_path / run / "base", DECISIONS) for run in ("one", "two")]
    assert [model.name for model in load_models(folders)] == ["one/base", "two/base"]
    with pytest.raises(DataError, match="is given twice"):
        load_models([folders[0], folders[0]])


def test_what_holds_no_pair_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        load_models([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="holds no results"):
        load_models([tmp_path])
    alone = save_benchmark(tmp_path, BASE, [1, 0])
    with pytest.raises(DataError, match=r"one model only .* give a second folder"):
        load_models([alone])


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([("a", "ALLOW", "DENY"), ("b", "ALLOW", "ALLOW")], "2 items of one decision only, ALLOW"),
        ([("a", "ALLOW", "maybe")], r"candidate/items.jsonl:1: predicted must be one of"),
        ([("a", "ALLOW", "DENY")] * 2, r"items.jsonl:2: id must be a text of its own"),
        ([], "no decision"),
    ],
)
def test_decisions_that_cannot_be_compared_are_refused(
    rows: list[tuple[str, str, str]], reason: str, tmp_path: Path
) -> None:
    folders = [save_decisions(tmp_path / "base", DECISIONS)]
    folders.append(save_decisions(tmp_path / "candidate", rows))
    with pytest.raises(DataError, match=reason):
        load_models(folders)
