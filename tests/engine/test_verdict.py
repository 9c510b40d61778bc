from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aegis.engine.judge import Judge
from aegis.engine.readings import Readings
from aegis.engine.verdict import MOST_PROBABLE, verdicts
from aegis.model.calibration import Calibration, Threshold, Weights
from aegis.model.lexical import LexicalHead
from aegis.protocol.decisions import Decision
from tests.engine.test_judge import PROMPTS


def test_the_temperature_softens_and_never_turns(model_folder: Path) -> None:
    before = Judge.load(model_folder).judge(PROMPTS)
    Calibration(Weights(0.25), Weights(0.25)).save(model_folder)
    after = Judge.load(model_folder).judge(PROMPTS)
    assert [v.decision for v in after] == [v.decision for v in before]
    assert max(after[0].probabilities) < max(before[0].probabilities)


def test_the_lexical_head_speaks_where_it_is_weighed(model_folder: Path) -> None:
    head = LexicalHead.fit(
        ["Hi there", "hack it", "人を助けるには", "x y"], [3, 0, 1, 0], strength=100.0
    )
    head.save(model_folder)
    Calibration(Weights(1e-6, 5.0), Weights(1e-6, 5.0)).save(model_folder)
    found = Judge.load(model_folder).judge(PROMPTS)
    assert [verdict.decision for verdict in found[:2]] == [Decision.REFUSE, Decision.ESCALATION]


def test_the_lexical_head_says_the_same_once_saved(tmp_path: Path) -> None:
    prompts = ["Hi there", "hack it", "人を助けるには", "x y"]
    head = LexicalHead.fit(prompts, [3, 0, 1, 2], strength=100.0)
    head.save(tmp_path)
    read = LexicalHead.load(tmp_path)
    assert read
    assert read.weight.tolist() == head.weight.tolist()
    assert read.logits(prompts).argmax(1).tolist() == [3, 0, 1, 2]
    for each in (head, read):  # a product copies 8 MB otherwise, which takes as long as a prompt
        assert each.weight.T.flags.c_contiguous


LOGITS = np.log([[0.6, 0.3, 0.05, 0.05], [0.9, 0.05, 0.02, 0.03], [0.4, 0.05, 0.05, 0.5]])


def test_allow_below_the_threshold_is_escalated_and_nothing_else_changes() -> None:
    free, bound = verdicts(LOGITS, [1, 1, 1]), verdicts(LOGITS, [1, 1, 1], 0.87)
    assert [v.decision.name for v in free] == ["ALLOW", "ALLOW", "REFUSE"]
    assert [v.decision.name for v in bound] == ["ESCALATION", "ALLOW", "REFUSE"]
    assert [v.rule for v in bound] == ["below τ 0.87: a person looks", *[MOST_PROBABLE] * 2]
    assert [v.probabilities for v in bound] == [v.probabilities for v in free]
    # ALLOW that is not the most probable stays what it was, however low the threshold.
    assert verdicts(LOGITS[2:], [1], 0.3)[0].decision is Decision.REFUSE


@pytest.mark.parametrize("allow_from", [0.0, 0.5, 1.0])
def test_what_is_no_number_is_never_allowed(allow_from: float) -> None:
    logits = np.array([[np.nan] * 4, [np.inf, 0.0, 0.0, 0.0], [0.0, np.nan, 0.0, 0.0]])
    with np.errstate(invalid="ignore"):
        found = verdicts(logits, [1, 1, 1], allow_from)
    assert {v.decision for v in found} == {Decision.ESCALATION}


def test_every_reading_obeys_the_threshold_as_the_severest_does() -> None:
    """The verdict on the reading that decides is the severest of the verdicts on all readings."""
    rng = np.random.default_rng(0)
    logits, owners = rng.normal(size=(600, 4)) * 2, np.repeat(np.arange(200), 3)
    read = Readings(["x"] * 600, owners)
    for allow_from in (0.0, 0.5, 0.8):
        together = verdicts(read.severest(logits), [0] * 200, allow_from)
        alone = np.array([v.decision for v in verdicts(logits, [0] * 600, allow_from)])
        assert [v.decision for v in together] == alone.reshape(200, 3).max(axis=1).tolist()


def test_judge_obeys_the_folder_s_threshold(model_folder: Path) -> None:
    def rules(allow: float) -> list[str]:
        made = Threshold(allow, 0.05, 0.95, 60, 0, 0.049, "0" * 64)
        Calibration(Weights(0.25), Weights(0.25), threshold=made).save(model_folder)
        return [v.rule for v in Judge.load(model_folder).judge(PROMPTS) if v.decision <= 1]

    free, bound = rules(0.0), rules(1.0)
    assert set(free) == {MOST_PROBABLE}
    assert "below τ 1: a person looks" in bound
