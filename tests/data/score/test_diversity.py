"""What the set has said already counts less, whatever the order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aegis.data.records import Record
from aegis.data.score.diversity import Phrases, distinct, self_bleu
from aegis.data.seed import seed_records


@pytest.fixture(scope="module")
def varied() -> list[Record]:
    return [record for record in seed_records() if record.thinking][:80]


def copies(record: Record, count: int) -> list[Record]:
    return [replace(record, id=f"copy-{number}") for number in range(count)]


def parts(records: list[Record]) -> dict[str, float]:
    phrases = Phrases()
    for record in records:
        phrases.add(record)
    return {record.id: phrases.part(record).value for record in records}


def test_copies_lose_and_the_others_do_not(varied: list[Record]) -> None:
    alone, among = parts(varied), parts([*varied, *copies(varied[0], 20)])
    assert among["copy-3"] < 0.15
    assert among[varied[0].id] == among["copy-3"]
    assert sum(abs(alone[each.id] - among[each.id]) for each in varied[1:]) < 0.5
    assert among == {**among, **parts([*copies(varied[0], 20), *reversed(varied)])}


def test_a_varied_set_is_told_from_a_stuck_one(varied: list[Record]) -> None:
    stuck = [*varied[:10], *copies(varied[0], 70)]
    assert distinct(stuck, 3) < 0.5 * distinct(varied, 3)
    assert self_bleu(stuck, seed=0) > 0.8
    assert self_bleu(varied, seed=0) < 0.4
    assert self_bleu(varied[::-1], seed=0) == self_bleu(varied, seed=0)


def test_one_record_repeats_nothing(varied: list[Record]) -> None:
    assert parts(varied[:1]) == {varied[0].id: 1.0}
    assert self_bleu(varied[:1], seed=0) == 0
    assert distinct([], 2) == 1
