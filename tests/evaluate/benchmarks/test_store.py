from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from aegis.errors import DataError
from aegis.evaluate.benchmarks.store import ItemKey, ItemStore
from aegis.evaluate.results import ItemResult, ModelInfo, TaskInfo

MODEL = ModelInfo("m", "m", "c" * 64, "hf", "transformers", "float32")
TASK = TaskInfo("arc_easy", "1.0", 0, "lm_eval 0", "log-likelihood", limit=2)


def item(number: int) -> ItemResult:
    return ItemResult("arc_easy", number, "d", "t", "p", 1, {"acc": 1.0}, (-1.25, -0.1), 1)


def test_items_are_kept_apart_by_what_made_them(tmp_path: Path):
    store = ItemStore(tmp_path / "new" / "items.sqlite")
    assert store.items(MODEL, TASK) == {}
    store.add(MODEL, TASK, [item(0), item(1)])
    store.add(MODEL, TASK, [item(2)])
    expected = {ItemKey("arc_easy", number, "p"): item(number) for number in range(3)}
    assert ItemStore(store.path).items(MODEL, TASK) == expected
    assert store.items(dataclasses.replace(MODEL, name="x", path="y"), TASK) == expected
    assert store.items(MODEL, dataclasses.replace(TASK, limit=None, prompts="z")) == expected
    for model in (
        dataclasses.replace(MODEL, content="d" * 64),
        dataclasses.replace(MODEL, dtype="bfloat16"),
        dataclasses.replace(MODEL, engine="llama.cpp"),
    ):
        assert store.items(model, TASK) == {}
    for task in (dataclasses.replace(TASK, version="2"), dataclasses.replace(TASK, shots=5)):
        assert store.items(MODEL, task) == {}


def test_a_batch_is_kept_whole_or_not_at_all(tmp_path: Path):
    store = ItemStore(tmp_path / "items.sqlite")
    store.add(MODEL, TASK, [item(0)])
    with pytest.raises(Exception, match="UNIQUE"):
        store.add(MODEL, TASK, [item(1), item(0)])
    assert len(store.items(MODEL, TASK)) == 1


def test_a_damaged_file_is_told(tmp_path: Path):
    path = tmp_path / "items.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match=r"items\.sqlite: cannot be read"):
        ItemStore(path).items(MODEL, TASK)
