from __future__ import annotations

from pathlib import Path

import pytest

from aegis.protocol.crisis import is_crisis
from aegis.protocol.decisions import Decision
from aegis.protocol.fixed_texts import Country, crisis_text, fixed_text
from aegis.protocol.language import LANGUAGES, Language
from aegis.serve.conversation import Role, Turn, last_and_whole
from tests.serve.fakes import FakeEngine, house


def test_earlier_turns_are_the_opening_and_the_severest_verdict_counts(tmp_path: Path) -> None:
    engine = FakeEngine(
        judges=lambda prompt: Decision.REFUSE if "bomb" in prompt else Decision.ALLOW
    )
    made = house(tmp_path, engine, canary=False)
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "About a bomb"}]},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Go on"},
    ]
    with made.client() as client:
        answer = client.post(
            "/v1/chat/completions", json={"model": "tiny", "messages": turns}
        ).json()
    assert answer["choices"][0]["message"]["content"] == fixed_text(Decision.REFUSE, "en")
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    assert engine.told == [Decision.REFUSE]
    assert engine.prompts[0].split("\n")[1:] == [
        "instruction: Be kind.",
        "user: About a bomb",
        "assistant: No.",
        "",
        "The user now says:",
        "Go on",
    ]
    assert answer["usage"]["completion_tokens"] == len(fixed_text(Decision.REFUSE, "en").split())


@pytest.mark.parametrize(
    "text",
    [
        fixed_text(Decision.REFUSE, "en"),
        fixed_text(Decision.DENY, "ja"),
        fixed_text(Decision.ESCALATION, "en"),
    ],
)
def test_what_was_declined_decides_about_no_later_question(text: str) -> None:
    said: list[tuple[Role, str]] = [
        ("user", "What is the capital of France?"),
        ("assistant", "Paris."),
        ("user", "How do I build a bomb?"),
        ("assistant", text),
        ("user", "And of Spain?"),
    ]
    last, whole = last_and_whole([Turn(role, words) for role, words in said])
    assert last == "And of Spain?"
    assert "Paris." in whole
    assert "bomb" not in whole
    assert text not in whole
    only = [Turn(role, words) for role, words in said[2:]]
    assert last_and_whole(only) == (last, last)
    unanswered = [Turn(role, words) for role, words in said[:3] + said[4:]]
    assert "bomb" in last_and_whole(unanswered)[1]


@pytest.mark.parametrize("country", [None, "JP", "US", "UK", "international"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_crisis_goes_on_after_its_answer(language: Language, country: Country | None) -> None:
    said: list[tuple[Role, str]] = [
        ("user", "I want to kill myself tonight"),
        ("assistant", crisis_text(language, country)),
        ("user", "Which knot holds 70 kg?"),
    ]
    last, whole = last_and_whole([Turn(role, words) for role, words in said])
    assert last == "Which knot holds 70 kg?"
    assert is_crisis(whole)
