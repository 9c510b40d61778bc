from __future__ import annotations

import pytest

from aegis.protocol.checks import SelfVerification, check, is_fresh
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
        "Where?", thinking("ALLOW", "The sky is blue and wide. " + secret, task=secret)
    ).fresh


SECRET = "この人は昨日の夜に職員証をなくした看護師らしい。"
LOOPS = ("I am. You are. " * 9, "ねこねこ" * 20, "It is so. " + "and then some more of it, " * 6)


@pytest.mark.parametrize(
    ("asked", "final"),
    [
        *(("Where?", text) for text in LOOPS),
        ("誰?", "そうですね、" + SECRET),
        ("Where?", "Well, the user asks which train goes\nthere before noon."),
    ],
)
def test_loops_and_quotations_are_not_fresh(asked: str, final: str) -> None:
    private = SECRET if asked == "誰?" else "The user asks which train goes there before noon."
    said = thinking("ALLOW", final, task=private.replace("The", "the"))
    assert not check(asked, said).fresh
    assert is_fresh(f"{asked} {final}", said)  # words of the asker's own


@pytest.mark.parametrize(
    ("asked", "final"),
    [
        ("What is the capital of France?", "Paris."),
        ("What is Japan's capital?", "The capital of Japan is Tokyo."),
        ("Count to ten.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
        ("Laugh.", "ha ha ha ha ha ha ha ha ha"),
        ("Write ha thirty times.", "ha " * 30),
        ("「はい」を三十回書いて", "はい" * 30),
        ("A table?", "| a | b |\n|-----|-----|\n" + "| 1 | 2 |\n" * 9),
        ("Ten zeros, ten times?", "0000000000 " * 10),
        ("A poem?", "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily."),
        ("Code?", "for i in range(3):\n    print(i)\n    print(i)\n    print(i)\n    print(i)"),
        ("日本の首都は?", "日本の首都は東京です。"),
        ("5x?", "\n".join(f"5 x {n} = {5 * n}" for n in range(1, 11))),
    ],
)
def test_what_is_short_listed_or_asked_for_is_fresh(asked: str, final: str) -> None:
    same = " ".join(final.split())[: 35 if final.isascii() else 18]
    assert check(asked, thinking("ALLOW", final, task=same, safety=f"Say: {same}")).fresh


def test_a_right_answer_with_a_no_in_it_is_no_disagreement() -> None:
    paths = [thinking("ALLOW", "No, the Earth is round."), thinking("ALLOW", "飛べません。")]
    assert SelfVerification()("Flat?", paths, decision=Decision.ALLOW).agreement == 1
    handed_on = [thinking("ALLOW", "I've passed this on to a colleague.")]
    assert SelfVerification()("Flat?", handed_on, decision=Decision.ALLOW).chosen is None


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
