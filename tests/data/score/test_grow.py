"""A stage is kept if and only if what it adds is as good as what was there."""

from __future__ import annotations

import pytest

from aegis.data.records import Record
from aegis.data.score.grow import GrowthStage, grow, in_order
from aegis.data.score.part import ScorePart
from aegis.data.score.record import WEIGHTS, RecordScore
from aegis.protocol.decisions import Decision


def made(values: list[float], *, text: str = "") -> tuple[list[Record], list[RecordScore]]:
    """Return records and scores with these values in each part."""
    records, scores = [], []
    for number, value in enumerate(values):
        prompt = text or f"words {number} nobody{number} else{number} says{number} here{number}"
        records.append(Record(f"r{number}", prompt, Decision.ALLOW, "en", "x"))
        scores.append(RecordScore(f"r{number}", {name: ScorePart(value, "") for name in WEIGHTS}))
    return records, scores


def sizes(stages: list[GrowthStage], *, kept: bool = True) -> list[int]:
    return [stage.size for stage in stages if stage.kept == kept]


def steady(count: int) -> list[float]:
    return [0.8 + 0.02 * (number % 5) for number in range(count)]


def test_a_set_that_stays_as_good_is_kept_whole() -> None:
    stages = grow(*made(steady(400)), [50, 100, 200, 400], margin=0.05)
    assert sizes(stages) == [50, 100, 200, 400]


def test_growth_stops_at_the_first_stage_that_is_worse() -> None:
    values = [*steady(100), *[value - 0.2 for value in steady(300)]]
    stages = grow(*made(values), [50, 100, 200, 400], margin=0.05)
    assert (sizes(stages), sizes(stages, kept=False)) == ([50, 100], [200])
    assert "not kept" in stages[-1].verdict
    assert stages[-1].lower < stages[-1].difference < -0.1


def test_too_few_to_tell_is_not_kept() -> None:
    values = [0.9, 0.3, 0.9, 0.3, 0.9, 0.3, 0.8, 0.35]
    assert sizes(grow(*made(values), [4, 8], margin=0.05)) == [4]


def test_a_size_that_the_set_does_not_have_is_told() -> None:
    stages = grow(*made(steady(60)), [50, 100], margin=0.05)
    assert sizes(stages) == [50]
    assert "the set has 60" in stages[-1].verdict


def test_what_only_repeats_is_not_kept() -> None:
    records, scores = made(steady(200))
    same, _ = made(steady(200), text="always the same five words again")
    stages = grow([*records[:100], *same[100:]], scores, [100, 200], margin=0.05)
    assert sizes(stages) == [100]


def test_the_order_is_a_function_of_the_seed() -> None:
    records, _ = made(steady(50))
    first = in_order(records, seed=1)
    assert first == in_order(records[::-1], seed=1)
    assert first != in_order(records, seed=2)
    assert {record.id for record in first} == {record.id for record in records}


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_a_margin_is_what_may_be_lost(margin: float) -> None:
    values = [*steady(200), *[value - 0.1 for value in steady(200)]]
    assert (sizes(grow(*made(values), [200, 400], margin=margin)) == [200, 400]) == (margin > 0.2)
