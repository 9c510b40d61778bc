from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aegis.serve.settings import MOST_FINAL_TOKENS
from tests.serve.fakes import FakeEngine, House, events, house, thinking


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"logprobs": True}, "unsupported"),
        ({"top_logprobs": 3}, "unsupported"),
        ({"n": 2}, "unsupported"),
        ({"echo": True}, "unsupported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported"),
        ({"response_format": {"type": "json_object"}}, "unsupported"),
        ({"modalities": ["audio"]}, "unsupported"),
        ({"top_p": 0}, "invalid_value"),
        ({"stop": ["secretword"] * 17}, "invalid_value"),
        ({"secret word": 1}, "unknown_field"),
        ({"messages": []}, "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "secretword"}]}, "invalid_value"),
        ({"messages": [{"role": "tool", "content": "secretword"}]}, "invalid_value"),
        ({"temperature": "secretword"}, "invalid_value"),
        ({"temperature": 3}, "invalid_value"),
        ({"max_tokens": 0}, "invalid_value"),
        ({"model": "secretword"}, "model_not_found"),
    ],
)
def test_a_chat_that_asks_for_what_there_is_not_is_turned_away(
    plain: House, changed: dict[str, Any], code: str
) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **changed}
    with plain.client() as client:
        answer = client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    assert answer.json()["error"]["code"] == code
    assert "secretword" not in answer.text
    assert plain.engine.thought == 0


USER, SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
NULLS = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "tool_calls", "name"))


@pytest.mark.parametrize(
    ("earlier", "spoken"),
    [
        ([SAID | NULLS], ["assistant: Hello."]),
        ([SAID | {"annotations": [], "tool_calls": [], "anything": None}], ["assistant: Hello."]),
        ([SAID | {"reasoning_content": "hm", "reasoning": None}], ["assistant: Hello."]),
        ([SAID | {"content": ""}], []),
        ([SAID | {"content": None}], []),
        ([SAID | {"content": []}], []),
        ([{"role": "assistant"}], []),
        ([SAID | {"content": None, "refusal": "No."}], ["assistant: No."]),
        ([SAID | {"content": [{"type": "refusal", "refusal": "No."}]}], ["assistant: No."]),
        ([{"role": "developer", "content": [{"type": "text", "text": "A"}]}], ["instruction: A"]),
        ([USER | {"name": "mai"}], ["user: Hi"]),
        ([USER, SAID] * 100, ["user: Hi", "assistant: Hello."] * 100),
    ],
)
def test_what_clients_send_back_is_understood(
    tmp_path: Path, earlier: list[Any], spoken: list[str]
) -> None:
    made = house(tmp_path, canary=False)
    asked = {"model": "aegis", "messages": [*earlier, USER]}
    with made.client() as client:
        assert client.post("/v1/chat/completions", json=asked).status_code == 200
    assert made.engine.prompts[0].split("\n")[1:-3] == (spoken or [])


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"colour": 1}, "colour"),
        ({"messages": [SAID | {"tool_calls": [{"id": "secretword"}]}]}, "messages[0].tool_calls"),
        ({"messages": [SAID | {"audio": {"id": "secretword"}}]}, "messages[0].audio"),
        ({"messages": [USER | {"colour": "secretword"}]}, "colour"),
        ({"messages": [USER | {"content": 7}]}, "messages[0].content"),
        (
            {"messages": [USER, USER | {"content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[1].content[0].type",
        ),
    ],
)
def test_an_error_names_its_place(plain: House, changed: dict[str, Any], param: str) -> None:
    asked = {"model": "aegis", "messages": [USER], **changed}
    with plain.client() as client:
        error = client.post("/v1/chat/completions", json=asked).json()["error"]
    assert error["param"] == param
    assert param in error["message"]
    assert "secretword" not in str(error)


IGNORED: dict[str, Any] = {
    "n": 1, "frequency_penalty": 0.5, "presence_penalty": -1, "repetition_penalty": 1.1,
    "top_k": 40, "min_p": 0.05, "metadata": {"a": "b"}, "store": True, "user": "u", "seed": 3,
    "parallel_tool_calls": True, "reasoning_effort": "low", "verbosity": "low", "tools": [],
    "tool_choice": "auto", "service_tier": "auto", "modalities": ["text"], "logit_bias": {},
    "prompt_cache_key": "k", "safety_identifier": "s", "response_format": {"type": "text"},
    "anything": None, "stream_options": None, "max_tokens": None, "temperature": None,
}  # fmt: skip


@pytest.mark.parametrize("name", IGNORED)
def test_what_changes_nothing_is_accepted(plain: House, name: str) -> None:
    asked = {"model": "aegis", "messages": [USER], name: IGNORED[name]}
    with plain.client() as client:
        answer = client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "It is Paris."


@pytest.mark.parametrize(
    ("stop", "final"),
    [
        (["is"], "It "),
        ("Paris", "It is "),
        (["Paris", "is"], "It "),
        (["Rome"], "It is Paris."),
        ([], "It is Paris."),
        ("It", ""),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_the_first_stop(
    plain: House, stop: Any, final: str, stream: bool
) -> None:
    asked = {"model": "aegis", "messages": [USER], "stop": stop, "stream": stream}
    with plain.client() as client:
        answer = client.post("/v1/chat/completions", json=asked)
    choices = [chunk["choices"][0] for chunk in (events(answer.text) or [answer.json()])]
    parts = [choice.get("delta", choice.get("message")).get("content", "") for choice in choices]
    assert "".join(parts) == plain.audit.entries[0].final == final
    assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("asked", "context", "most"),
    [(None, 50_000, 160), (20, 50_000, 20), (32_000, 50_000, MOST_FINAL_TOKENS), (4096, 600, 394)],
)
def test_more_tokens_than_there_are_become_what_there_is(
    tmp_path: Path, asked: int | None, context: int, most: int
) -> None:
    engine = FakeEngine(says=lambda *_: thinking("word " * 2000), context=context)
    made = house(tmp_path, engine, canary=False)
    body = {"model": "aegis", "messages": [USER], "max_tokens": asked}
    with made.client() as client:
        chat = client.post("/v1/chat/completions", json=body)
        think = client.post("/think", json={"query": "Hi", "max_new_tokens": asked})
    assert {limits.final for limits in engine.limits} == {most}
    told = str(MOST_FINAL_TOKENS) if asked and asked > MOST_FINAL_TOKENS else None
    assert chat.headers.get("X-Max-Tokens") == think.headers.get("X-Max-Tokens") == told
