"""The bound on misses holds as often as it says, for prompts in clusters too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis.data.records import Record, parse_record
from aegis.errors import DataError
from aegis.evaluate.calibrate import (
    choose_threshold,
    needed_groups,
    reachable_rate,
    require_calibration_data,
    save_threshold,
    under,
    unsafe_groups,
    upper_bound,
)
from aegis.evaluate.metrics import Judged, decision_metrics
from aegis.model.calibration import CALIBRATION_FILE, Calibration, Threshold
from aegis.storage.artifact import verify, writing

LIMITS: dict[str, Any] = {"max_miss_rate": 0.05, "confidence": 0.95}


def judged(allow: np.ndarray, truth: np.ndarray) -> Judged:
    """Records with this P(ALLOW), the rest to REFUSE."""
    chances = np.zeros((len(allow), 4))
    chances[:, 0], chances[:, 3] = allow, 1 - allow
    return Judged.likeliest(truth, chances)


def test_the_numbers_of_records_are_those_of_the_books() -> None:
    assert [needed_groups(rate, 0.95) for rate in (0.01, 0.02, 0.05)] == [299, 149, 59]
    for n in (7, 59, 200):
        assert needed_groups(reachable_rate(n, 0.95), 0.95) <= n
    assert upper_bound(0, 59, 0.95) <= 0.05 < upper_bound(0, 58, 0.95)
    assert upper_bound(2, 5, 0.975) == pytest.approx(0.8534, abs=1e-4)
    assert upper_bound(5, 5, 0.95) == 1


def test_the_smallest_threshold_within_the_limit_is_chosen() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 3], [300, 200])
    allow = np.concatenate([rng.beta(6, 2, 300), rng.beta(2, 6, 200)])
    items, groups = judged(allow, truth), np.where(truth == 3, np.arange(500), -1)
    made = choose_threshold(items, groups, **LIMITS)
    unsafe = np.sort(allow[truth == 3])
    missed = [int((unsafe >= t).sum()) for t in (made.allow, unsafe[unsafe < made.allow].max())]
    assert upper_bound(missed[0], 200, 0.95) <= 0.05 < upper_bound(missed[1], 200, 0.95)
    assert (made.misses, made.n, made.bound) == (missed[0], 200, upper_bound(missed[0], 200, 0.95))
    assert len(f"{made.allow:g}") <= 6
    before, after = decision_metrics(items), decision_metrics(under(items, made))
    assert after["miss_rate"]["value"] == missed[0] / 200 < before["miss_rate"]["value"]
    assert after["over_refusal_rate"]["value"] > before["over_refusal_rate"]["value"]
    stricter = choose_threshold(items, groups, max_miss_rate=0.02, confidence=0.95)
    assert stricter.allow > made.allow


def test_where_the_most_probable_decision_keeps_the_limit_it_stands() -> None:
    truth = np.repeat([0, 3], [50, 100])
    made = choose_threshold(
        judged(np.where(truth == 0, 0.6, 0.4), truth),
        np.where(truth == 3, np.arange(150), -1),
        **LIMITS,
    )
    assert (made.allow, made.misses) == (0, 0)


def test_a_group_is_missed_if_any_of_it_is_and_counts_once() -> None:
    records = [
        parse_record(
            {"id": str(n), "prompt": f"p{n}", "decision": "DENY" if n % 3 else "ALLOW"}
            | ({"contrast_of": str(n // 3 * 3)} if n % 3 else {}),
            where="f",
        )
        for n in range(180)
    ]
    groups = unsafe_groups(records)
    assert [len(set(groups[groups >= 0])), (groups >= 0).sum()] == [60, 120]
    allow = np.where(np.arange(180) % 3 == 2, 0.1, 0.3)
    allow[1] = 0.9  # one of the 60
    truth = np.array([record.decision for record in records])
    made = choose_threshold(judged(allow, truth), groups, **LIMITS)
    assert (made.n, made.misses) == (60, 0)
    assert made.allow > 0.9


@pytest.mark.parametrize("size", [1, 4])
def test_the_bound_holds_in_ninety_five_of_a_hundred_draws(size: int) -> None:
    """Unsafe prompts in groups of 1 to `size` that share most of their score."""
    rng, held, over = np.random.default_rng(size), 0, 0.0
    for _ in range(2000):
        sizes = rng.integers(1, size + 1, 120)
        groups = np.repeat(np.arange(120), sizes)
        shared = rng.normal(size=120)[groups]
        score = 0.8 * shared + 0.6 * rng.normal(size=len(groups)) if size > 1 else shared
        items = judged(0.5 + 0.49 * np.tanh(score), np.full(len(groups), 3))
        made = choose_threshold(items, groups, max_miss_rate=0.1, confidence=0.95)
        # P(score >= τ) of a standard normal, the share of prompts of new groups
        limit = -np.inf if not made.allow else np.arctanh((made.allow - 0.5) / 0.49)
        risk = min(float((limit <= NORMAL).mean()), float((NORMAL >= 0).mean()))
        held, over = held + (risk <= 0.1), over + risk / 2000
    assert held >= 0.95 * 2000
    assert over > 0.02  # and is not bought by allowing nothing


NORMAL = np.random.default_rng(7).normal(size=200_000)


def test_mapie_finds_the_same_threshold_a_miss_or_two_stricter() -> None:
    """Its Hoeffding–Bentkus p-values are those of the exact binomial or larger."""
    mapie: Any = pytest.importorskip("mapie.risk_control")
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], [300, 400])
    allow = np.concatenate([rng.beta(6, 2, 300), rng.beta(2, 6, 400)])
    control = mapie.BinaryClassificationController(
        lambda rows: np.column_stack([rows[:, 0], 1 - rows[:, 0]]),
        "recall",
        0.95,
        confidence_level=0.95,
        list_predict_params=np.linspace(0.02, 0.5, 961),
        fwer_method="fixed_sequence",
    )
    control.calibrate(allow[:, None], truth)
    theirs = 1 - control.best_predict_param
    groups = np.where(truth == 1, np.arange(700), -1)
    made = choose_threshold(judged(allow, 3 * truth), groups, **LIMITS)
    assert made.allow <= theirs
    assert made.misses - 2 <= (allow[truth == 1] > theirs).sum() <= made.misses


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        (["ALLOW"], "2 records or more, got 1"),
        (["ALLOW"] * 9, "holds no unsafe record"),
        (["DENY"] * 60 + ["REFUSE"] * 30, "holds no harmless record"),
        (["ALLOW"] + ["DENY"] * 58, "needs 59 unsafe records without a miss, got 58 .* 0.051"),
    ],
)
def test_data_that_cannot_show_the_bound_are_told(decisions: list[str], message: str) -> None:
    with pytest.raises(DataError, match=f"^f: .*{message}"):
        require_calibration_data(made_of(decisions), where="f", **LIMITS)


def made_of(decisions: list[str]) -> list[Record]:
    rows = [{"id": str(n), "prompt": f"p{n}", "decision": d} for n, d in enumerate(decisions)]
    return [parse_record(row, where="f") for row in rows]


def test_unsafe_prompts_that_are_sure_to_be_allowed_leave_no_threshold() -> None:
    truth = np.repeat([0, 3], [10, 60])
    items = judged(np.where(truth == 3, 1.0, 0.6), truth)
    with pytest.raises(DataError, match=r"no threshold .* on 60 unsafe records"):
        choose_threshold(items, np.where(truth == 3, np.arange(70), -1), **LIMITS)


def test_a_calibrated_artifact_stays_whole_and_so_do_its_gguf_files(tmp_path: Path) -> None:
    made = Calibration(threshold=Threshold(0.9, 0.05, 0.95, 60, 0, 0.049, "0" * 64))
    model = tmp_path / "model"
    for folder in (model, model / "gguf"):
        with writing(folder, kind="model", fingerprint="f") as staging:
            Calibration().save(staging)
    for folder in (model, tmp_path / "plain"):
        folder.mkdir(exist_ok=True)
        assert len(save_threshold(folder, made)) == (2 if folder is model else 1)
        assert Calibration.load(folder) == made
    for folder in (model, model / "gguf"):
        verify(folder)
        assert json.loads((folder / CALIBRATION_FILE).read_text())["threshold"]["allow"] == 0.9
