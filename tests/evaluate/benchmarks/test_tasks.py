from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aegis.engine.scoring import Score
from aegis.errors import BadInputError, DataError

pytest.importorskip("lm_eval")

from aegis.evaluate.benchmarks.local_data import LOCAL_TASKS
from aegis.evaluate.benchmarks.tasks import Benchmark, load_benchmark

SHARED = Path(__file__).parents[4] / "shared" / "data" / "bench"


def test_prompts_are_the_official_ones(data: Path):
    first = {name: load_benchmark(name, data=data, limit=1).items[0] for name in LOCAL_TASKS}
    context, choice = first["arc_easy"].pairs[0]
    assert re.fullmatch(r"Question: What is .*\?\nAnswer:", context)
    assert choice.startswith(" ")
    assert first["mmlu"].pairs[1][1] == " B"
    assert first["mmlu"].pairs[0][0].startswith("The following are multiple choice questions (with")
    assert first["mmlu"].category == "anatomy"
    contexts = {context for context, _ in first["winogrande"].pairs}
    assert len(contexts) == 2
    assert len({choice for _, choice in first["winogrande"].pairs}) == 1
    assert " [title]" not in first["hellaswag"].pairs[0][1]
    assert first["gsm8k"].stops == ("Question:", "</s>", "<|im_end|>")
    assert first["gsm8k"].prompt.count("Question: ") == 6
    assert len(first["jcommonsenseqa"].pairs) == 5


@pytest.mark.skipif(not SHARED.is_dir(), reason="no public items beside the checkout")
@pytest.mark.parametrize("name", ["arc_easy", "hellaswag", "winogrande"])
def test_public_items_give_back_their_own_text(name: str):
    benchmark = load_benchmark(name, data=SHARED, limit=200)
    lines = (SHARED / LOCAL_TASKS[name].items).read_text(encoding="utf-8").splitlines()
    for item, row in zip(benchmark.items, map(json.loads, lines), strict=False):
        contexts, continuations = zip(*item.pairs, strict=True)
        assert item.target == row["answer"]
        if name == "winogrande":
            assert list(contexts) == row["contexts"]
            assert continuations[0] == " " + row["continuation"]
        elif name == "arc_easy":
            assert [text[1:] for text in continuations] == row["choices"]
        else:
            assert contexts[0] == row["context"].replace("  ", " ")


def test_a_limit_is_spread_over_subjects(data: Path):
    benchmark = load_benchmark("mmlu", data=data, limit=5, shots=2)
    assert [item.category for item in benchmark.items] == ["anatomy"] * 3 + ["virology"] * 2
    assert benchmark.shots == 2
    assert len({item.key for item in benchmark.items}) == 5


def test_scores_are_the_harness_own(data: Path):
    item = load_benchmark("arc_easy", data=data, limit=1).items[0]
    right = item.target
    scores = [Score(-1.0 if number == right else -9.0, False) for number in range(len(item.pairs))]
    result = item.weighed(scores)
    assert result.scores == {"acc": 1.0, "acc_norm": 1.0}
    assert (result.chosen, result.target) == (right, right)
    sums = load_benchmark("gsm8k", data=data, limit=1).items[0]
    answer = str(sums.target).split("#### ")[1]
    written = sums.written(f"So {answer}.\n#### {answer}")
    assert written.scores["exact_match,strict-match"] == 1.0
    assert written.extracted == {"strict-match": answer, "flexible-extract": answer}
    assert sums.written("none").scores == {
        "exact_match,strict-match": 0.0,
        "exact_match,flexible-extract": 0.0,
    }


def test_what_changes_a_prompt_changes_its_key(data: Path):
    def keys(benchmark: Benchmark) -> set[object]:
        return {item.key for item in benchmark.items}

    plain, shown = (load_benchmark("mmlu", data=data, limit=4, shots=n) for n in (0, 1))
    assert not keys(plain) & keys(shown)
    assert keys(plain) <= keys(load_benchmark("mmlu", data=data, limit=8, shots=0))


def test_what_cannot_be_asked_is_told(data: Path, tmp_path: Path):
    with pytest.raises(BadInputError, match=r"'hellaswg'; the nearest are hellaswag$"):
        load_benchmark("hellaswg", data=data)
    with pytest.raises(
        BadInputError, match=r"'hellaswg'; the nearest are hellaswag, (?!hellaswag,)"
    ):
        load_benchmark("hellaswg")
    with pytest.raises(BadInputError, match="there are among others arc_challenge, "):
        load_benchmark("7")
    with pytest.raises(DataError, match=r"arc_easy_test\.jsonl: no such file; --data-dir"):
        load_benchmark("arc_easy", data=tmp_path)
    with pytest.raises(DataError, match=r"holds no arc_easy_train\.jsonl.*--shots 0"):
        load_benchmark("arc_easy", data=data, shots=1)
    (tmp_path / "arc_easy_test.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(DataError, match=r"arc_easy_test\.jsonl:1: not an item"):
        load_benchmark("arc_easy", data=tmp_path)
    (tmp_path / "arc_easy_test.jsonl").write_text("")
    with pytest.raises(DataError, match="has no items"):
        load_benchmark("arc_easy", data=tmp_path)
