from __future__ import annotations

from aegis.data.generate import generate, tidy
from aegis.data.topics import Topic
from aegis.protocol.decisions import Decision


def test_generated_samples_take_the_topics_decision_and_hand_over() -> None:
    topics = [
        Topic("a", "What is a levee?", "en", "disaster", Decision.ALLOW),
        Topic("b", "Shut the pump now", "en", "infrastructure", Decision.ESCALATION),
        Topic("c", "Broken", "en", "everyday", Decision.ALLOW),
    ]
    made, broken = generate(
        topics, lambda prompts: ["A wall. And then", "It is one.", "<final>"][: len(prompts)]
    )
    assert [r.decision.name for r in made] == ["ALLOW", "ESCALATION"]
    assert made[0].thinking is not None
    assert made[0].thinking.public == "A wall."
    assert made[1].thinking is not None
    assert "A person will take this" in made[1].thinking.public
    assert "tag-like" in broken[0].reason


def test_tidy_cuts_after_the_last_sentence() -> None:
    assert tidy(" One.\n Two! Thr") == "One. Two!"
    assert tidy("はい。次は") == "はい。"
    assert tidy("no end") == "no end"
    assert tidy("3.5 metres") == "3.5 metres"
