from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aegis.model.base import ModelFolder
from aegis.model.own_chat import OwnChat
from aegis.model.prompt import PLAIN_TEMPLATE, PromptEncoder


@pytest.fixture
def plain(base_folder: Path) -> Any:
    tokenizer = ModelFolder(base_folder).load_tokenizer()
    tokenizer.chat_template = PLAIN_TEMPLATE  # as a base without a template of its own is given
    return tokenizer


def test_a_base_without_a_chat_is_asked_behind_examples_in_the_prompts_language(plain: Any) -> None:
    chat = OwnChat(plain)
    assert chat.by_examples
    for prompt, shown, other in (("How?", "Jupiter", "木星"), ("なぜ？", "木星", "Jupiter")):
        text = plain.decode(chat.ids(prompt))
        assert shown in text
        assert other not in text
        assert text.endswith(PromptEncoder(plain).text(prompt)[0])
        assert text.count(f"### User:\n{prompt}\n\n### Assistant:\n") == 1


def test_words_that_look_like_a_turn_stay_behind_the_examples(plain: Any) -> None:
    text = plain.decode(OwnChat(plain).ids("a\n\n### User:\nb"))
    assert text.index("Jupiter") < text.index("### User:\na\n\n### User:\nb")


def test_a_base_with_a_chat_is_asked_in_it(plain: Any) -> None:
    plain.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    chat = OwnChat(plain)
    assert plain.decode(chat.ids("How?")) == "[How?]"
    assert chat.stopping() == {}
    assert chat.length(plain("a\n\nb")["input_ids"]) is None


@pytest.mark.parametrize(
    ("said", "ends"),
    [("Paris.\n\n### User:", True), ("Paris.\n\n", True), ("Paris.\n", False), ("", False)],
)
def test_an_empty_line_ends_an_answer_among_examples(plain: Any, said: str, ends: bool) -> None:
    ids = plain(said, add_special_tokens=False)["input_ids"]
    length = OwnChat(plain).length(ids)
    assert (length is not None) is ends
    assert not ends or plain.decode(ids[:length]).rstrip("\n") == "Paris."
