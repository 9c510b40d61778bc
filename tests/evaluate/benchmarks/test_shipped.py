from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.errors import BadInputError, DataError
from aegis.evaluate.benchmarks.letters import by_letter
from aegis.evaluate.benchmarks.models import name_model
from aegis.evaluate.benchmarks.run import evaluate_models
from aegis.evaluate.benchmarks.shipped import (
    SHIPPED,
    parse_plain,
    plain_items,
    shipped_benchmark,
)
from aegis.evaluate.benchmarks.tasks import load_benchmark

GOOD = {"id": "a", "task": "plain_facts", "context": "x", "choices": ["y", "z"], "answer": 1}


def test_every_item_is_sound_and_the_right_choice_stands_anywhere() -> None:
    items = plain_items()
    assert len({item.id for item in items}) == len(items)
    asked = Counter((item.context, item.choices) for item in items)
    assert max(asked.values()) == 1
    for name in SHIPPED:
        places = Counter(item.answer for item in items if item.task == name)
        assert max(places.values()) - min(places.values()) <= 1


@pytest.mark.parametrize("name", SHIPPED)
def test_they_are_asked_without_the_harness_and_by_letter(
    name: str, tmp_path: Path, save_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    benchmark = load_benchmark(name, data=tmp_path, limit=5)
    assert (benchmark.harness, benchmark.shots, len(benchmark.items)) == ("aegis", 0, 5)
    result = evaluate_models([name_model(str(save_base("llama")))], [benchmark], tmp_path)[0]
    for item in result.items:
        right = max(range(len(item.log_probs)), key=lambda choice: item.log_probs[choice])
        assert item.scores == {"acc": float(right == item.target)}
    first = by_letter(benchmark).items[0]
    assert first.written("ABCD"[int(first.target)]).scores == {"acc": 1.0}
    with pytest.raises(BadInputError, match="has no examples"):
        load_benchmark(name, shots=2)


def test_a_space_stands_before_english_words_only() -> None:
    for name, begin in (("plain_japanese", ""), ("plain_facts", " ")):
        item = shipped_benchmark(name, limit=1).items[0]
        assert [text for _, text in item.pairs] == [begin + text for text in item.choices]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": 2}, "answer be the number"),
        ({"choices": ["y", "y"]}, "choices must differ"),
        ({"task": "other"}, "task must be one of"),
        ({"more": 1}, "must have the fields"),
    ],
)
def test_a_bad_item_is_told(change: dict[str, object], reason: str) -> None:
    assert parse_plain(GOOD, where="f:1").pairs == (("x", " y"), ("x", " z"))
    with pytest.raises(DataError, match=f"f:1: .*{reason}"):
        parse_plain({**GOOD, **change}, where="f:1")
