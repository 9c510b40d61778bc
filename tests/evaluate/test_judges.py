from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aegis.evaluate.judges import JUDGE_COLUMNS, judge_rows, paired
from tests.evaluate.test_report import BASE, CANDIDATE, TRUTH, results


def test_paired_counts_only_what_one_alone_got_right() -> None:
    base = [
        {"id": str(i), "truth": "DENY", "predicted": p}
        for i, p in enumerate(["DENY", "ALLOW", "ALLOW", "DENY"])
    ]
    new = [
        {"id": str(i), "truth": "DENY", "predicted": p}
        for i, p in enumerate(["DENY", "DENY", "DENY", "ALLOW"])
    ]
    assert paired(base, new) == {"gained": 2, "lost": 1, "p": pytest.approx(1.0)}
    with pytest.raises(ValueError, match="different items"):
        paired(base, new[::-1])


def test_each_judge_has_a_row_and_stands_against_the_candidate() -> None:
    half = {**results(np.where(np.arange(20) < 10, TRUTH, 0)), "judge": "probe", "learned": 1200}
    rate = {"value": 0.25, "n": 10, "interval": [0.1, 0.5]}
    candidate: dict[str, Any] = {**CANDIDATE, "most_probable": {"miss_rate": rate}}
    rows = judge_rows(BASE, candidate, [half])
    assert [row[0] for row in rows] == [
        "base: decision head",
        "probe, 1,200 records",
        "candidate, most probable decision",
        "candidate",
    ]
    assert all(len(row) == len(JUDGE_COLUMNS) for row in rows)
    wrong = int((np.arange(20) >= 10)[TRUTH != 0].sum())
    assert rows[0][-1].startswith("15 / 0 (p = 6.1e-05)")
    assert rows[1][-1].startswith(f"{wrong} / 0 ")
    assert [row[-1] for row in rows[2:]] == ["", ""]
    assert (rows[2][2], rows[3][2]) == ("0.250 [0.100, 0.500]", rows[3][2])
    assert rows[3][2].startswith("0.000")
    assert len(judge_rows(BASE, CANDIDATE, [])) == 2
