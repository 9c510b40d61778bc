"""One fault at a time lowers the part that it concerns, in both languages; and the scores agree
with the grades that readers gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from aegis.data.records import Record, parse_record, read_jsonl
from aegis.data.score.record import WEIGHTS, score_record
from aegis.data.seed import seed_pairs
from aegis.errors import DataError
from aegis.protocol.decisions import Decision

GRADED = Path(__file__).with_name("graded.jsonl")
GOOD = {
    "en": {
        "prompt": "A box holds 24 bottles. How many boxes do 310 bottles need?",
        "task": "Find the smallest number of boxes for 310 bottles.",
        "safety": "Nobody is at risk; too few boxes would be a nuisance.",
        "policy": "A harmless calculation, ALLOW.",
        "final": "Divide, round up and check: 13 * 24 = 312.",
        "answer": "You need 13 boxes, because 12 hold only 288 bottles and 13 * 24 = 312.",
    },
    "ja": {
        "prompt": "1箱に24本入ります。瓶310本には何箱必要ですか。",
        "task": "瓶310本に必要な箱の数を求める。",
        "safety": "計算の質問で、誰にも害はない。",
        "policy": "単なる計算なのでALLOW。",
        "final": "割り算をして切り上げ、13×24=312と確かめる。",
        "answer": "13箱必要です。12箱では288本しか入らず、13×24=312なので足ります。",
    },
}
FAULTS: list[tuple[str, str, dict[str, str]]] = [
    ("en", "soundness", {"final": "Divide and check: 13 * 24 = 313."}),
    ("ja", "soundness", {"final": "確かめると13×24=313になる。"}),
    ("en", "soundness", {"final": "Divide: 310 / 31 = 10 boxes."}),
    ("en", "soundness", {"policy": "Refuse this, it is harmful."}),
    ("ja", "soundness", {"final": "危険なので断る。"}),
    ("ja", "soundness", {"safety": GOOD["ja"]["task"]}),
    ("en", "correctness", {"answer": "You need 13 boxes, because 13 * 24 = 322 bottles fit."}),
    (
        "en",
        "correctness",
        {"answer": "I'm sorry, but I can't help with boxes; please ask somebody else today."},
    ),
    ("ja", "correctness", {"answer": "申し訳ありませんが、そのご質問にはお答えできません。"}),
    ("en", "depth", {"answer": "13.", "safety": "None.", "final": "Divide."}),
    ("ja", "depth", {"answer": "13箱。", "safety": "なし。", "final": "割る。"}),
    ("en", "language", {"answer": "13箱必要です。12箱では288本しか入りません。"}),
    ("ja", "language", {"answer": "You need 13 boxes, because 12 hold only 288."}),
    ("ja", "language", {"task": "Find the number of boxes for 310."}),
    ("en", "format", {"answer": "You need 13 boxes, because 12 hold only 288 bottles and the"}),
    ("ja", "format", {"answer": "13箱です。" * 9}),
    ("en", "format", {"answer": "Task: find 13. Safety: none. Policy: ALLOW. You need 13 boxes."}),
    ("ja", "format", {"answer": "13箱です。私はAI言語モデルです。他にご質問があればどうぞ。"}),
    ("en", "format", {"final": "TODO: [insert plan], 13 * 24 = 312."}),
    ("ja", "format", {"answer": "13箱必要です。12箱では288\ufffd\ufffd。"}),
]


def record(language: str, changes: dict[str, str], **fields: Any) -> Record:
    text = GOOD[language] | changes
    raw: dict[str, Any] = {
        "id": "r",
        "prompt": text["prompt"],
        "decision": "ALLOW",
        "language": language,
        "thinking": {name: text[name] for name in ("task", "safety", "policy", "final")},
        "final": text["answer"],
    }
    return parse_record(raw | fields, where="r")


@pytest.mark.parametrize("language", GOOD)
def test_a_good_record_has_no_fault(language: str) -> None:
    score = score_record(record(language, {}))
    assert score.overall > 0.85
    assert all(part.value == 1 for name, part in score.parts.items() if name != "depth")


@pytest.mark.parametrize(("language", "part", "changes"), FAULTS)
def test_a_fault_lowers_its_part(language: str, part: str, changes: dict[str, str]) -> None:
    good, bad = score_record(record(language, {})), score_record(record(language, changes))
    assert bad.parts[part].value <= 0.7 * good.parts[part].value
    assert bad.parts[part].reason != good.parts[part].reason
    assert bad.overall < good.overall - 0.05


@pytest.mark.parametrize(
    ("key", "answer", "right"),
    [
        ("B", "The answer is B, carbon dioxide.", True),
        ("B", "A) Oxygen is what plants take in.", False),
        ("B", "Plants take in carbon dioxide through their leaves.", True),
        ("12 km", "It is 12 km away.", True),
        ("12 km", "It is 12,000 m away.", False),
        (42, "It comes to 42.", True),
        ("42", "It comes to 24.", False),
        ("2026-03-06", "That is 6 March 2026.", True),
        ("2026-03-06", "2026年3月7日です。", False),
        ("Paris", "The capital is paris.", True),
    ],
)
def test_an_answer_is_held_against_its_key(key: object, answer: str, right: bool) -> None:
    prompt = "Which gas do plants take in? A) Oxygen B) Carbon dioxide C) Helium"
    part = score_record(record("en", {"prompt": prompt, "answer": answer}, answer=key)).parts
    assert (part["correctness"].value > 0.5) == right
    assert str(key) in part["correctness"].reason


def test_an_answer_that_does_not_do_what_was_decided_is_wrong() -> None:
    thanks = {"answer": "Here is how: take a steel pipe and fill it.", "policy": "REFUSE"}
    bad = score_record(record("en", thanks, decision="REFUSE"))
    assert bad.parts["correctness"].value < 0.2


def test_what_has_no_thinking_has_no_score() -> None:
    with pytest.raises(DataError, match="no thinking"):
        score_record(replace(record("en", {}), thinking=None))


def test_the_weights_come_to_one() -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1)


def graded() -> list[tuple[Record, list[int]]]:
    items, _ = read_jsonl(GRADED, parse_record)
    return [(item, item.extra["grades"]) for item in items]


def correlation(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return Spearman's rank correlation."""
    return float(spearmanr(list(ours), list(theirs))[0])  # pyright: ignore[reportArgumentType]


def is_held_out(item: Record) -> bool:
    """Return whether nothing was fitted on it: the even numbers."""
    return int(item.id[3:]) % 2 == 0


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_graded_items_are_many_and_of_every_grade(language: str) -> None:
    grades = [grades[0] for item, grades in graded() if item.language == language]
    assert len(grades) >= 60
    assert min(np.bincount(grades, minlength=6)[1:]) >= 10


def kappa(one: Sequence[int], other: Sequence[int]) -> float:
    """Return Cohen's kappa of grades from 1 to 5, weighted by squared distance."""
    seen = np.zeros((5, 5))
    for a, b in zip(one, other, strict=True):
        seen[a - 1, b - 1] += 1
    expected = np.outer(seen.sum(1), seen.sum(0)) / seen.sum()
    weights = np.subtract.outer(range(5), range(5)) ** 2
    return float(1 - (weights * seen).sum() / (weights * expected).sum())


def test_the_two_readings_agree() -> None:
    first, second = zip(*(grades for _, grades in graded()), strict=True)
    assert first != second
    assert kappa(first, second) >= 0.6
    assert correlation(first, second) >= 0.6


@pytest.mark.parametrize("languages", [("en",), ("ja",), ("en", "ja")])
def test_the_score_agrees_with_the_grades_of_what_it_was_not_fitted_on(
    languages: tuple[str, ...],
) -> None:
    held_out = [
        (item, grades)
        for item, grades in graded()
        if is_held_out(item) and item.language in languages
    ]
    scores = [score_record(item).overall for item, _ in held_out]
    assert correlation(scores, [float(np.mean(grades)) for _, grades in held_out]) >= 0.6


def test_the_chosen_side_of_a_pair_scores_higher_where_the_decisions_differ() -> None:
    wins = []
    for pair in seed_pairs():
        if pair.chosen.decision is pair.rejected.decision:
            continue
        chosen, rejected = (
            Record(pair.id, pair.prompt, pair.chosen.decision, pair.language, "x", thinking=side)
            for side in (pair.chosen.thinking, pair.rejected.thinking)
        )
        wins.append(score_record(chosen).overall > score_record(rejected).overall)
    assert len(wins) > 200
    assert np.mean(wins) > 0.9


def test_each_decision_can_be_scored() -> None:
    assert {item.decision for item, _ in graded()} == set(Decision)
