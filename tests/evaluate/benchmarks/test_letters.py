from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from aegis.engine.text_server import TextServer
from aegis.errors import ModelError
from aegis.evaluate.benchmarks.letters import by_letter
from aegis.evaluate.benchmarks.models import name_server
from aegis.evaluate.benchmarks.run import ITEMS_FILE, evaluate_models
from aegis.evaluate.benchmarks.store import ItemStore
from aegis.evaluate.benchmarks.tasks import load_benchmark
from tests.engine.test_text_server import serving


@pytest.mark.parametrize("name", ["arc_easy", "hellaswag", "winogrande", "mmlu", "jcommonsenseqa"])
def test_every_choice_stands_behind_its_letter(name: str, data: Path):
    weighed = load_benchmark(name, data=data, limit=4)
    for item, before in zip(by_letter(weighed).items, weighed.items, strict=True):
        count = len(before.pairs)
        for letter in "ABCDE"[:count]:
            assert item.prompt.count(f"\n{letter}. ") == 1
        assert f"\n{'ABCDEF'[count]}. " not in item.prompt
        assert item.target == before.target
        right = "ABCDE"[int(item.target)]
        for answer in (right, f"{right}.", f"The answer is {right}", f"({right}) because"):
            assert item.written(answer).scores == {"acc": 1.0}
        wrong = item.written("I don't know")
        assert (wrong.scores, wrong.chosen) == ({"acc": 0.0}, None)


def test_what_is_written_stays_so(data: Path):
    benchmark = load_benchmark("gsm8k", data=data, limit=2)
    assert by_letter(benchmark) is benchmark


def test_a_server_is_asked_by_letter_and_what_it_answered_is_kept(data: Path, tmp_path: Path):
    tasks = [load_benchmark(name, data=data, limit=4) for name in ("arc_easy", "gsm8k")]
    with serving() as (url, asked):
        named = name_server(TextServer("ollama", url, "tiny"))
        chosen, written = evaluate_models([named], tasks, tmp_path)
        assert evaluate_models([named], tasks, tmp_path)[0].items == chosen.items
    assert [path for path, _ in asked] == ["/api/chat"] * 4 + ["/api/generate"] * 4
    assert (chosen.task.scoring, written.task.scoring) == ("letter", "generation")
    assert set(chosen.measures) == {"acc"}
    with serving(status=500) as (url, _):
        down = TextServer("ollama", url, "tiny")
        with pytest.raises(ModelError, match="status 500"):
            down.content()
    store = ItemStore(tmp_path / ITEMS_FILE)
    assert len(store.items(chosen.model, chosen.task)) == 4
