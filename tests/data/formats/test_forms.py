from __future__ import annotations

from typing import Any

import pytest

from aegis.data.formats.forms import recognised
from aegis.data.records import Plain, Record, parse_item
from aegis.errors import DataError
from aegis.protocol.thinking import compose
from tests.data.test_records import GOOD, THINKING

TURNS = [("user", "Hello"), ("assistant", "Hi."), ("user", "Bye"), ("assistant", "See you.")]


def item(raw: dict[str, Any]) -> Any:
    return parse_item(recognised(raw, "f:1"), where="f:1")


@pytest.mark.parametrize(
    ("raw", "text", "response"),
    [
        ({"instruction": "Add", "input": "1 + 1", "output": "2"}, "Add\n\n1 + 1", "2"),
        ({"instruction": "Say a", "input": "", "output": "a"}, "Say a", "a"),
        ({"prompt": "p", "completion": "c"}, "p", "c"),
        ({"question": "q", "answer": "a"}, "q", "a"),
        ({"prompt": "p"}, "p", None),
        ({"text": "t"}, "t", None),
        ({"messages": [{"role": r, "content": c} for r, c in TURNS[:2]]}, "Hello", "Hi."),
        ({"messages": [{"role": r, "content": c} for r, c in TURNS[:1]]}, "Hello", None),
        (
            {"conversations": [{"from": r, "value": c} for r, c in TURNS]},
            "User: Hello\n\nAssistant: Hi.\n\nUser: Bye",
            "See you.",
        ),
        (
            {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]},
            "h",
            "g",
        ),
    ],
)
def test_forms_of_others_become_plain_texts(
    raw: dict[str, Any], text: str, response: str | None
) -> None:
    plain = item({**raw, "id": 7, "note": "n", "language": "English"})
    assert plain == Plain("7", text, "en", "general", response=response, extra={"note": "n"})


def test_a_decision_makes_a_record_and_the_protocol_thinking() -> None:
    thinking = item({**GOOD, "thinking": THINKING, "final": "Use kill."}).thinking
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": compose(thinking)},
    ]
    record = item({"messages": messages, "decision": "ALLOW"})
    assert isinstance(record, Record)
    assert record.thinking == thinking
    short = item({"prompt": "q", "decision": "ALLOW", "response": "Use kill."})
    assert short.extra == {"response": "Use kill."}


def test_a_system_text_is_kept() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    assert item({"messages": messages}).extra == {"system": "Be brief."}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"messages": []}, "holds no user's turn"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "holds no user's turn"),
        ({"messages": [{"role": "tool", "content": "a"}]}, r"messages\[0\] must have a role"),
        ({"messages": ["a"]}, r"messages\[0\] must have a role"),
        ({"conversations": [{"from": "human", "value": [1]}]}, r"\[0\] must have a role"),
        ({"a": 1, "b": 2}, r"holds no prompt, text, messages .*its fields: a, b"),
        ({}, "its fields: none"),
        ({"instruction": "x", "input": [1]}, "input must be text"),
        ({"prompt": "x", "output": "<think-task>a</think-task>"}, "does not follow the thinking"),
        ({"prompt": ["x"], "output": "y"}, "text must be non-empty text"),
        ({"prompt": "x", "language": "fr"}, "language must be one of ja, en"),
    ],
)
def test_broken_forms_are_told(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        item(raw)
