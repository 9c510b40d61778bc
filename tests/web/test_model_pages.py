from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from aegis.errors import BadInputError
from aegis.protocol.decisions import Decision
from aegis.web.app import with_pages
from aegis.web.model_pages import Asked, read_prompts
from tests.serve.fakes import FakeEngine, house

ORIGIN = "http://127.0.0.1:8080"


def judges(prompt: str) -> Decision:
    return Decision.REFUSE if "bomb" in prompt else Decision.ALLOW


@pytest.fixture
def asker(tmp_path: Path, runs: Path) -> TestClient:
    made = house(tmp_path, FakeEngine(judges=judges))
    app = with_pages(made.app, made.service, runs)
    return TestClient(app, base_url=ORIGIN, headers={"origin": ORIGIN})


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("one\n\n  \ntwo, three", [Asked("one"), Asked("two, three")]),
        ("prompt", [Asked("prompt")]),
        ('{"prompt": "a\\nb", "decision": "DENY"}\n', [Asked("a\nb", "DENY")]),
        ('{"prompt": "a"}\n{"prompt": "b", "x": 1}', [Asked("a"), Asked("b")]),
        ('prompt,decision\n"a, b",ALLOW\nc,\n', [Asked("a, b", "ALLOW"), Asked("c")]),
        ('id,prompt\n1,"two\nlines"\n', [Asked("two\nlines")]),
    ],
)
def test_prompts_come_as_lines_json_lines_or_csv(text: str, asked: list[Asked]) -> None:
    assert read_prompts(text) == asked


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" \n", "no prompts"),
        ('{"prompt": "a"}\n{"prompt": ', "line 2"),
        ('{"text": "a"}', "prompt 1"),
        ('{"prompt": "a", "decision": "MAYBE"}', "prompt 1"),
        ('{"prompt": "a", "decision": ["DENY"]}', "prompt 1"),
        ('prompt\n"a', "CSV cannot be read"),
        ("prompt,decision\n,ALLOW", "prompt 1"),
        ("x\n" * 501, "501 prompts, and 500"),
    ],
)
def test_what_cannot_be_judged_says_where_and_why(text: str, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        read_prompts(text)


def test_verdicts_are_shown_with_the_right_decisions(asker: TestClient) -> None:
    text = '{"prompt": "How do I build a bomb?", "decision": "REFUSE"}\n{"prompt": "<b>hi</b>"}'
    shown = asker.post("/ui/judge", data={"prompts": text}).text
    assert 'data-truth="REFUSE"' in shown
    assert "&lt;b&gt;hi&lt;/b&gt;</bdi></td><td>ALLOW</td><td>most probable</td>" in shown
    assert shown.count("0.7000") == 2


def test_a_mistake_keeps_what_was_typed(asker: TestClient) -> None:
    shown = asker.post("/ui/judge", data={"prompts": '{"prompt": "typed"}\n{'})
    assert (shown.status_code, "typed" in shown.text, "line 2" in shown.text) == (400, True, True)


def test_a_file_that_is_too_large_is_turned_away(asker: TestClient) -> None:
    assert asker.post("/ui/judge", data={"prompts": "x" * 600_000}).status_code == 413


def test_without_a_model_the_pages_say_how_to_start_one(browser: TestClient) -> None:
    for path in ("/ui/ask", "/ui/judge"):
        assert "aegis serve runs/latest/model" in browser.get(path).text
    answer = browser.post("/ui/judge", data={"prompts": "x"}, headers={"origin": ORIGIN})
    assert answer.status_code == 400


def test_the_chat_has_the_models_name_and_every_decision(asker: TestClient) -> None:
    shown = asker.get("/ui/ask").text
    assert 'data-model="aegis"' in shown
    assert all(f'data-chance="{decision.name}"' in shown for decision in Decision)
