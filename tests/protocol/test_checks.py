from __future__ import annotations

import pytest

from aegis.protocol.checks import SelfVerification, check
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import Thinking


def thinking(policy: str, final: str, **bodies: str) -> Thinking:
    given = {
        "task": "what is asked",
        "safety": "nobody is harmed",
        "policy": policy,
        "final": "be short",
        **bodies,
    }
    return Thinking.from_bodies(given, final, where="here")


def test_each_check_finds_its_fault() -> None:
    good = thinking("ALLOW", "Paris, since 2 + 3 = 5.")
    assert check("Where?", good, decision=Decision.ALLOW).score == 1.0
    assert check("Where?", good, decision=Decision.REFUSE).stance is False
    assert not check(
        "Where?", thinking("REFUSE", "Paris is nice."), decision=Decision.ALLOW
    ).agreement
    assert not check("どこですか", good).language
    assert not check("Where?", thinking("ALLOW", "2 + 3 = 6")).numbers
    assert not check("Where?", thinking("ALLOW", "8 ÷ 0 = 4")).numbers
    assert check("Where?", thinking("ALLOW", "1 + 2 + 3 = 6 and 12 x 2 = 24")).numbers
    assert not check("Where?", thinking("ALLOW", "go there " * 12)).fresh
    secret = "the user seems to be a nurse who lost her badge"
    assert not check("Where?", thinking("ALLOW", f"I think {secret}.", task=secret)).fresh
    assert not check(
        "誰?",
        thinking(
            "ALLOW", "看護師で職員証をなくしたらしい。", task="看護師で職員証をなくしたらしい。"
        ),
    ).fresh
    assert not check(
        "Where?", thinking("ALLOW", "The sky is blue and wide. " + secret, task=secret)
    ).fresh


def test_paths_that_agree_stand_and_others_become_an_escalation() -> None:
    yes, no = thinking("ALLOW", "It is in Paris."), thinking("REFUSE", "I won't help with that.")
    verify = SelfVerification(0.6)
    assert verify("Where?", [yes, yes, yes]).decision is Decision.ALLOW
    split = verify("Where?", [yes, no, no], decision=Decision.ALLOW)
    assert (split.decision, split.chosen) == (Decision.ESCALATION, None)
    assert split.agreement == pytest.approx(1 / 3)
    chosen = verify("Where?", [thinking("by the rule", "In Paris."), yes], decision=Decision.ALLOW)
    assert chosen.chosen == 1
    assert (
        SelfVerification(0.0)("Where?", [no], decision=Decision.ALLOW).decision
        is Decision.ESCALATION
    )
    with pytest.raises(ValueError, match="threshold must lie in"):
        SelfVerification(1.5)
    with pytest.raises(ValueError, match="at least one path"):
        verify("Where?", [])
