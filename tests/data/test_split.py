from __future__ import annotations

from dataclasses import replace

import pytest

from aegis.data.split import SPLITS, contrast_groups, split_records
from tests.data.test_clean import record


@pytest.mark.parametrize("seed", range(3))
def test_twins_never_sit_on_both_sides(seed: int) -> None:
    rows = [record(f"prompt {i}", ("ALLOW", "REFUSE")[i % 2], id=str(i)) for i in range(200)]
    rows = [replace(r, contrast_of=str(i - 1)) if i % 3 == 1 else r for i, r in enumerate(rows)]
    splits = split_records(rows, validation=0.1, test=0.2, seed=seed)
    side = {r.id: name for name in SPLITS for r in splits[name]}
    assert len(side) == 200
    for group in contrast_groups(rows):
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
