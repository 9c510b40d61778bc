from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis.config import AnnealSettings
from aegis.so8 import Schedule, alpha_at, opening
from aegis.train.evidence import (
    difference,
    gather,
    interval,
    steepest,
    write_evidence,
)
from aegis.train.loop import StepLog
from benchmarks.annealing_comparison import compare, draw_comparison
from tests.train.test_sft import trained


def history(
    schedule: Schedule, steps: int = 200, *, drop: float = 1.0, noise: float = 0.1, seed: int = 0
) -> list[StepLog]:
    """A made-up training whose loss falls by `drop` while its gates open."""
    rng = np.random.default_rng(seed)
    logs = []
    for step in range(steps):
        alpha = alpha_at(schedule, step)
        loss = 2.0 - drop * opening(alpha) + noise * float(rng.normal())
        extra = {"alpha": alpha, "g": opening(alpha)}
        logs.append(StepLog(step + 1, loss, {}, 100 + step % 7, 0.1, 1.0 + loss / 2, 1e-3, extra))
    return logs


SIGMOID = Schedule(annealing_steps=140, warmup_steps=20)
OPEN = Schedule(annealing_steps=0, start=1.618, end=1.618)


def test_the_steepest_ascent_is_where_the_schedule_has_it() -> None:
    evidence = gather(history(SIGMOID))
    assert evidence is not None
    assert evidence.alpha.step == pytest.approx(20 + 70 + 1, abs=1)
    # The middle of the logistic rises by steepness/4 of the whole, per annealing step.
    low, high = opening(-6), opening(6)
    assert evidence.alpha.rate == pytest.approx(
        (1.618034 + 5) * 12 / 4 / 140 / (high - low), rel=0.01
    )
    # Half the peak's rise is where σ' = 1/8: ln(3 + 2√2) to each side of the middle, in units of
    # the steepness.
    width = 2 * math.log(3 + 2 * math.sqrt(2)) / 12 * 140
    assert evidence.alpha.last - evidence.alpha.first == pytest.approx(width, abs=2)
    assert evidence.g.step > evidence.alpha.step  # g is still shut while α rises from −5
    assert evidence.alpha.steps_at_peak <= 2


def test_a_linear_schedule_has_no_steepest_point_and_says_so() -> None:
    evidence = gather(history(replace(SIGMOID, shape="linear")))
    assert evidence is not None
    assert evidence.alpha.steps_at_peak == 140
    assert evidence.alpha.step == pytest.approx(91, abs=1)


def test_windows_lie_before_around_and_after() -> None:
    evidence = gather(history(SIGMOID, drop=1.0))
    assert evidence is not None
    before, around, after = (evidence.windows[name] for name in ("before", "around", "after"))
    assert before.last + 1 == around.first == evidence.alpha.first
    assert around.last + 1 == after.first
    assert before.loss.mean > around.loss.mean > after.loss.mean
    for window in (before, around, after):
        assert window.loss.low is not None
        assert window.loss.high is not None
        assert window.loss.low < window.loss.mean < window.loss.high
    change = evidence.change["loss"]
    assert change.clear_of_zero
    assert change.mean == pytest.approx(after.loss.mean - before.loss.mean)


def test_without_a_rise_there_is_no_evidence() -> None:
    assert gather(history(OPEN)) is None
    assert gather([]) is None
    learned = [replace(log, extra={}) for log in history(SIGMOID)]
    assert gather(learned) is None
    assert steepest([1, 2, 3], [3.0, 2.0, 1.0]) is None


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    covered = sum(
        found.low <= 0.5 <= found.high  # type: ignore[operator]
        for found in (interval(rng.normal(0.5, 1.0, 40)) for _ in range(60))
    )
    assert covered >= 50  # 95 % of 60 is 57
    assert interval(np.array([2.0])).low is None
    assert difference(np.array([1.0]), np.array([2.0, 3.0])).low is None
    assert difference(np.zeros(5), np.ones(5)).mean == 1.0


def test_a_comparison_finds_what_annealing_did_and_nothing_where_it_did_nothing() -> None:
    annealed = history(SIGMOID, drop=1.0, seed=0)
    without = [
        replace(log, extra={"alpha": 1.6, "g": 0.8}) for log in history(SIGMOID, drop=0.0, seed=1)
    ]
    found = compare(annealed, without)
    assert found.windows["after"].loss.mean < -0.5
    assert "lower with annealing" in found.reading()
    same = compare(
        annealed, [replace(log, loss=log.loss + 0.02 * (-1) ** log.step) for log in annealed]
    )
    assert "no difference can be seen" in same.reading()
    assert "One seed" in same.reading()
    assert same.to_json()["windows"]["whole"]["loss"]["n"] == 200


def test_only_trainings_on_the_same_batches_are_compared(tmp_path: Path) -> None:
    annealed = history(SIGMOID)
    with pytest.raises(ValueError, match="different batches"):
        compare(annealed, annealed[:-1])
    with pytest.raises(ValueError, match="different batches"):
        compare(annealed, [replace(log, tokens=log.tokens + 1) for log in annealed])
    with pytest.raises(ValueError, match="no rising α"):
        compare(history(OPEN), annealed)


def test_a_real_training_leaves_its_evidence_beside_the_adapter(
    tokenizer: Any, tmp_path: Path
) -> None:
    _, result = trained(tokenizer)
    evidence = write_evidence(tmp_path, result.history)
    assert evidence is not None
    written = json.loads((tmp_path / "evidence.json").read_text(encoding="utf-8"))
    assert written["alpha"]["step"] == evidence.alpha.step
    assert written["windows"].keys() <= {"before", "around", "after"}
    assert "no evidence" in written["note"]
    assert (tmp_path / "phase_transition.png").stat().st_size > 10_000
    _, flat = trained(
        tokenizer, anneal=AnnealSettings(start=1.618, end=1.618, warmup=0.0, annealing=0.0)
    )
    assert write_evidence(tmp_path / "nowhere", flat.history) is None
    draw_comparison(tmp_path / "comparison.png", result.history, flat.history)
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert compare(result.history, flat.history).steps == len(result.history)
