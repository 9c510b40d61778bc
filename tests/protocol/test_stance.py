from __future__ import annotations

import pytest

from aegis.data.seed import seed_pairs, seed_records
from aegis.protocol.decisions import Decision
from aegis.protocol.stance import STANCE_OF, refuses, stance, stated_decision
from tests.protocol.answers import REFUSALS, RIGHT


def test_stances_of_the_seed_are_read_right() -> None:
    """Rules read what 9 of 10 answers do; the floor is a little under what was measured (0.954)."""
    seen = [
        (record.decision, record.thinking.public) for record in seed_records() if record.thinking
    ]
    seen += [(pair.chosen.decision, pair.chosen.thinking.public) for pair in seed_pairs()]
    right = sum(stance(final) == STANCE_OF[decision] for decision, final in seen)
    assert right / len(seen) > 0.94


@pytest.mark.parametrize("final", RIGHT)
def test_what_cannot_be_or_is_not_so_is_an_answer(final: str) -> None:
    assert not refuses(final)


@pytest.mark.parametrize("final", REFUSALS)
def test_only_the_assistants_own_no_is_a_refusal(final: str) -> None:
    assert refuses(final)


def test_no_allowed_seed_answer_is_a_refusal() -> None:
    said = [(r.decision, r.thinking.public) for r in seed_records() if r.thinking]
    assert [
        final for decision, final in said if decision is Decision.ALLOW and refuses(final)
    ] == []
    refused = [refuses(final) for decision, final in said if decision is Decision.REFUSE]
    assert sum(refused) / len(refused) > 0.6  # the rest tells first what it is about


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
