from __future__ import annotations

from pathlib import Path

from aegis.engine.judge import Judge
from aegis.model.calibration import Calibration, Weights
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
