"""Asking models plain questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from aegis.evaluate import replies as asking
from aegis.evaluate.answers import Question, Reply, plain_questions
from aegis.evaluate.replies import Ask, load_answering, load_chat, replies
from aegis.model.base import ModelFolder
from aegis.protocol.decisions import NAMES
from aegis.storage.journal import Journal
from tests.engine.conftest import write_model

QUESTIONS = plain_questions(part="report", language="en")


def named(reply: Reply, question: Question) -> bool:
    return reply == Reply(f"about {question.question}", "DENY")


def test_what_was_answered_before_a_kill_is_not_asked_again(tmp_path: Path) -> None:
    batches: list[int] = []

    def ask(prompts: Sequence[str]) -> list[Reply]:
        if len(batches) == 1:
            batches.append(0)
            raise KeyboardInterrupt
        batches.append(len(prompts))
        return [Reply(f"about {prompt}", "DENY") for prompt in prompts]

    def asked() -> list[Reply]:
        return replies(QUESTIONS[:45], lambda: ask, remember=Journal(tmp_path / "j.jsonl"))

    with pytest.raises(KeyboardInterrupt):
        asked()
    assert all(map(named, asked(), QUESTIONS))
    assert batches == [20, 0, 20, 5]
    loaded: list[Ask] = []
    replies(QUESTIONS[:45], lambda: loaded[0], remember=Journal(tmp_path / "j.jsonl"))


def test_a_folder_is_asked_in_its_own_chat_and_as_it_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_TOKENS", 4)
    write_model(tmp_path / "model")
    prompts = [question.question for question in QUESTIONS[:3]]
    chat = load_chat(ModelFolder(tmp_path / "model"))
    together = chat(prompts)
    assert together == [reply for prompt in prompts for reply in chat([prompt])]
    assert {reply.outcome for reply in together} == {"answered"}
    served = load_answering(tmp_path / "model")(prompts)
    assert {reply.outcome for reply in served} <= {"answered", "withheld", *NAMES} - {"ALLOW"}
