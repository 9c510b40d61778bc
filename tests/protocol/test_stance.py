from __future__ import annotations

import pytest

from aegis.data.seed import seed_pairs, seed_records
from aegis.protocol.decisions import Decision
from aegis.protocol.stance import STANCE_OF, stance, stated_decision


def test_stances_of_the_seed_are_read_right() -> None:
    """Rules read what 9 of 10 answers do; the floor is a little under what was measured (0.935)."""
    seen = [
        (record.decision, record.thinking.public) for record in seed_records() if record.thinking
    ]
    seen += [(pair.chosen.decision, pair.chosen.thinking.public) for pair in seed_pairs()]
    right = sum(stance(final) == STANCE_OF[decision] for decision, final in seen)
    assert right / len(seen) > 0.9


@pytest.mark.parametrize(
    ("policy", "decision"),
    [
        ("General information, so ALLOW.", Decision.ALLOW),
        ("Violence is refused.", Decision.REFUSE),
        ("Private data is declined.", Decision.DENY),
        ("担当者に引き継ぐ。", Decision.ESCALATION),
        ("ALLOW or DENY, hard to say", None),
        ("by the rule", None),
    ],
)
def test_a_stated_decision_is_read(policy: str, decision: Decision | None) -> None:
    assert stated_decision(policy) == decision
