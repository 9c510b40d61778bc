from __future__ import annotations

from pathlib import Path

from aegis.data.sources.generate.calls import Calls
from aegis.data.sources.generate.ledger import Ledger
from aegis.data.sources.generate.local import LocalBackend, tidy
from aegis.data.sources.generate.run import TopicPlan, generate
from aegis.data.topics import Topic
from aegis.protocol.decisions import Decision

TOPICS = [
    Topic("a", "What is a levee?", "en", "disaster", Decision.ALLOW),
    Topic("b", "Shut the pump now", "en", "infrastructure", Decision.ESCALATION),
    Topic("c", "堤防とは？", "ja", "disaster", Decision.ALLOW),
]


def test_samples_take_the_topics_decision_and_hand_over(tmp_path: Path) -> None:
    asked: list[int] = []

    def complete(prompts: object) -> list[str]:
        texts = list(prompts)  # type: ignore[call-overload]
        asked.append(len(texts))
        return ["A wall. And then" for _ in texts]

    calls = Calls(LocalBackend(complete), Ledger(tmp_path / "ledger.db"))
    made = generate(TOPICS, calls, TopicPlan(steps=("thinking",)))
    assert [record.decision.name for record in made.records] == ["ALLOW", "ESCALATION"]
    first, second = (record.thinking for record in made.records)
    assert first is not None
    assert first.public == "A wall."
    assert second is not None
    assert "A person will take this" in second.public
    assert made.rejected[0].reason == "thinking: task must be in Japanese"
    assert asked == [3, 3, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], "asked again twice"


def test_every_step_is_done_by_a_plain_writer(tmp_path: Path) -> None:
    def complete(prompts: object) -> list[str]:
        return [
            "水を防ぐ壁です。" if "。" in text else "It is a wall."
            for text in prompts  # type: ignore[attr-defined]
        ]

    made = generate(TOPICS, Calls(LocalBackend(complete), Ledger(tmp_path / "ledger.db")))
    assert not made.rejected
    assert [pair.id for pair in made.pairs] == [f"generated-{name}-pair" for name in "abc"]
    sides = [(pair.chosen.decision.name, pair.rejected.decision.name) for pair in made.pairs]
    assert sides == [("ALLOW", "ESCALATION"), ("ESCALATION", "ALLOW"), ("ALLOW", "ESCALATION")]
    assert made.drafts[0].notes is not None
    assert made.drafts[0].notes.facts[0].source == "the model's own memory"
    assert made.records[0].provenance is not None
    assert made.records[0].provenance.backend == "local"


def test_tidy_cuts_after_the_last_sentence() -> None:
    assert tidy(" One.\n Two! Thr") == "One. Two!"
    assert tidy("はい。次は") == "はい。"
    assert tidy("no end") == "no end"
    assert tidy("3.5 metres") == "3.5 metres"
    assert tidy("途中で切れ\ufffd") == "途中で切れ"
