from __future__ import annotations

from dataclasses import replace

import pytest

from aegis.data.records import Provenance, Record, parse_pair
from aegis.data.split import SPLITS, contrast_groups, leak_groups, split_pairs, split_records
from tests.data.test_clean import record
from tests.data.test_records import SIDE


@pytest.mark.parametrize("seed", range(3))
def test_twins_never_sit_on_both_sides(seed: int) -> None:
    rows = [record(f"prompt {i}", ("ALLOW", "REFUSE")[i % 2], id=str(i)) for i in range(200)]
    rows = [replace(r, contrast_of=str(i - 1)) if i % 3 == 1 else r for i, r in enumerate(rows)]
    splits = split_records(rows, validation=0.1, test=0.2, seed=seed)
    side = {r.id: name for name in SPLITS for r in splits[name]}
    assert len(side) == 200
    for group in leak_groups(rows):
        assert len({side[r.id] for r in group}) == 1
    assert abs(len(splits["test"]) - 40) <= 6
    assert splits == split_records(rows, validation=0.1, test=0.2, seed=seed)
    assert splits != split_records(rows, validation=0.1, test=0.2, seed=seed + 10)


def test_chains_of_twins_are_one_group() -> None:
    rows = [
        record("a", id="a"),
        record("b", id="b", contrast_of="a"),
        record("c", id="c", contrast_of="b"),
    ]
    assert [len(group) for group in contrast_groups(rows)] == [3]
    orphans = [record(name, id=name, contrast_of="gone") for name in "xyz"]
    assert [len(group) for group in leak_groups(orphans)] == [3]


TEXT = "What time does the library in the old town open on public holidays?"


def test_near_duplicates_and_items_of_one_page_are_one_group() -> None:
    page = Provenance(url="https://example.org/a")
    rows = [
        record(TEXT, id="a"),
        replace(record("How tall is it?", id="b"), provenance=page),
        replace(record(TEXT.replace("public", "bank"), id="c"), provenance=page),
        record("Something else entirely, about birds", id="d"),
    ]
    ids = [[r.id for r in group] for group in leak_groups(rows, near=0.7)]
    assert ids == [["a", "b", "c"], ["d"]]
    assert [[r.id for r in group] for group in leak_groups(rows)] == [["a"], ["b", "c"], ["d"]]
    assert len(contrast_groups(rows)) == 4


def test_near_duplicates_never_sit_on_both_sides() -> None:
    words = [f"{a}{b}{c}" for a in "kstn" for b in "aiueo" for c in "rmgz"]
    rows = []
    for number, word in enumerate(words):
        text = f"{word} {TEXT} {word[::-1]} {word * 3}"
        rows += [record(text, id=f"{number}a"), record(f"{text}!", id=f"{number}b")]
    alone = split_records(rows, validation=0.1, test=0.2, seed=1)
    near = split_records(rows, validation=0.1, test=0.2, seed=1, near=0.95)

    def torn(splits: dict[str, list[Record]]) -> int:
        side = {r.id: name for name in SPLITS for r in splits[name]}
        return sum(side[f"{n}a"] != side[f"{n}b"] for n in range(len(words)))

    assert torn(alone) > 10
    assert torn(near) == 0
    assert sum(map(len, near.values())) == len(rows)


def test_whole_sources_are_held_out() -> None:
    rows = [record(f"prompt {i}", id=str(i), source=f"s{i % 20}") for i in range(200)]
    splits = split_records(rows, validation=0.1, test=0.2, seed=0, by_source=True)
    sources = [{r.source for r in splits[name]} for name in SPLITS]
    assert all(sources)
    assert sum(map(len, sources)) == 20


def test_pairs_with_nearly_the_same_prompt_are_in_one_split() -> None:
    sides = {"chosen": SIDE, "rejected": {**SIDE, "final": "No."}}
    texts = [f"{TEXT} {n:03}{mark}" for n in range(40) for mark in ("", " now")]
    raw = [{"id": f"{n}", "prompt": text, **sides} for n, text in enumerate(texts)]
    pairs = [parse_pair(row, where="f") for row in raw]
    shares = {"validation": 0.2, "test": 0.3, "seed": 4}
    for near, torn in ((0.999, 1), (0.2, 0)):
        dealt = split_pairs(pairs, near=near, **shares)
        assert [pair.id for pair in dealt] == [pair.id for pair in pairs]
        differ = sum(
            one.split != two.split for one, two in zip(dealt[::2], dealt[1::2], strict=True)
        )
        assert (differ > 0) == bool(torn)
