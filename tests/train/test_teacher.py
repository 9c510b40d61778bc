"""The base's own answers: what is asked, what comes back, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.config import DistillationSettings
from aegis.data.records import Record, parse_record
from aegis.model.base import ModelFolder, resolve_base
from aegis.model.own_chat import OwnChat
from aegis.model.prompt import PLAIN_TEMPLATE
from aegis.storage.journal import Journal
from aegis.train.teacher import (
    BaseAnswer,
    _ask,
    _unpacked,
    _worth_keeping,
    ask_base,
    harmless,
    read_answers,
    save_answers,
)

SETTINGS = DistillationSettings(prompts=4, tokens=6, top=8, prompt_tokens=200)


def record(number: int, decision: str = "ALLOW", **fields: Any) -> Record:
    row = {"id": str(number), "prompt": f"question {number}", "decision": decision, **fields}
    return parse_record(row, where="t:1")


RECORDS = [record(number) for number in range(6)] + [record(9, "REFUSE")]


def test_only_harmless_prompts_are_asked_thought_ones_first(tokenizer: Any) -> None:
    thinking = {"task": "t", "safety": "s", "policy": "p", "final": "f"}
    thought = record(7, thinking=thinking, final="Yes.")
    chat = OwnChat(tokenizer)
    assert not chat.by_examples
    asked = harmless([*RECORDS, thought], chat, SETTINGS, seed=0)
    assert asked[0] == thought.prompt
    assert len(asked) == 4
    assert "question 9" not in asked
    assert harmless(RECORDS, chat, SETTINGS.model_copy(update={"prompt_tokens": 3}), seed=0) == []


def by_examples(base_folder: Path) -> OwnChat:
    tokenizer = ModelFolder(base_folder).load_tokenizer()
    tokenizer.chat_template = PLAIN_TEMPLATE
    return OwnChat(tokenizer)


def test_a_base_without_a_chat_is_asked_questions_first(base_folder: Path) -> None:
    questions = [record(7, prompt="Where do bees live?"), record(8, prompt="question eight?")]
    asked = harmless([*RECORDS, *questions], by_examples(base_folder), SETTINGS, seed=0)
    assert set(asked[:2]) == {each.prompt for each in questions}
    assert len(asked) == 4


def test_answers_are_what_the_base_says_and_come_back_whole(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis.train.teacher.fast_dtype", lambda: torch.float32)
    base = resolve_base(str(base_folder))
    tokenizer, answers = ask_base(base, RECORDS, SETTINGS, seed=0)
    save_answers(tmp_path, tokenizer, answers)
    back = read_answers(tmp_path)
    assert [(one.prompt, one.ids) for one in back] == [(one.prompt, one.ids) for one in answers]
    model: Any = ModelFolder(base_folder).load_model(dtype=torch.float32)
    chat = OwnChat(tokenizer)
    for one, kept in zip(answers, back, strict=True):
        assert torch.equal(one.words, kept.words)
        assert torch.equal(one.log_chances, kept.log_chances)
        prompt = chat.ids(one.prompt)
        logits = model(input_ids=torch.tensor([[*prompt, *one.ids]])).logits[
            0, len(prompt) - 1 : -1
        ]
        logs = torch.log_softmax(logits.float(), -1)
        assert logs.argmax(-1).tolist() == list(one.ids)
        there = logs.gather(-1, one.words.long())
        assert torch.allclose(there, one.log_chances.float(), atol=0.01)


def test_no_batch_is_asked_twice(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, journal = resolve_base(str(base_folder)), Journal(tmp_path / "journal")
    first = ask_base(base, RECORDS, SETTINGS, seed=0, remember=journal)[1]
    monkeypatch.setattr("aegis.train.teacher._ask", lambda *_: pytest.fail("asked again"))
    monkeypatch.setattr(
        type(base), "load_model", lambda *_, **__: pytest.fail("loaded for nothing")
    )
    again = ask_base(base, RECORDS, SETTINGS, seed=0, remember=Journal(tmp_path / "journal"))[1]
    assert [one.ids for one in again] == [one.ids for one in first]


@pytest.mark.parametrize("said", ["Why is the sky blue?", "question 1", "また質問ですか？", ""])
def test_what_repeats_the_prompt_or_asks_back_is_not_kept(tokenizer: Any, said: str) -> None:
    nothing = torch.zeros(0)
    ids = tuple(tokenizer(said, add_special_tokens=False)["input_ids"])
    kept = tuple(tokenizer("It is blue.", add_special_tokens=False)["input_ids"])
    chat = OwnChat(tokenizer)
    assert not _worth_keeping(chat, BaseAnswer("question 1?", ids, nothing, nothing))
    assert _worth_keeping(chat, BaseAnswer("question 1?", kept, nothing, nothing))


def test_a_base_without_a_chat_has_to_end_what_it_says(base_folder: Path) -> None:
    chat, nothing = by_examples(base_folder), torch.zeros(0)
    said = chat.tokenizer("It is blue", add_special_tokens=False)["input_ids"]
    end = chat.tokenizer.eos_token_id
    assert not _worth_keeping(chat, BaseAnswer("question 1?", tuple(said), nothing, nothing))
    assert _worth_keeping(chat, BaseAnswer("question 1?", (*said, end), nothing, nothing))


def test_an_answer_among_examples_ends_with_the_end_token(
    base_folder: Path,
) -> None:
    chat = by_examples(base_folder)
    tokenizer = chat.tokenizer
    ids = tokenizer("Blue.\n\n### User:", add_special_tokens=False)["input_ids"]

    class Writes:
        device = torch.device("cpu")

        def generate(self, input_ids: Any, logits_processor: Any, **_: Any) -> Any:
            for token in ids:
                scores = torch.zeros(len(input_ids), len(tokenizer))
                scores[:, token] = 9.0
                logits_processor(input_ids, scores)
            return torch.cat([input_ids, torch.tensor([ids] * len(input_ids))], 1)

    (given,) = _ask(Writes, chat, [[5, 6]], SETTINGS)
    answer = _unpacked("Which colour?", given)
    assert tokenizer.decode(answer.ids, skip_special_tokens=True).strip() == "Blue."
    assert answer.ids[-1] == tokenizer.eos_token_id
    assert int(answer.words[-1, 0]) == tokenizer.eos_token_id
    assert float(answer.log_chances[-1].float().exp().sum()) == pytest.approx(1)
    assert len(answer.ids) == len(answer.words) == len(answer.log_chances)


def test_no_answers_are_no_file_to_trip_over(tmp_path: Path, tokenizer: Any) -> None:
    save_answers(tmp_path, tokenizer, [])
    assert read_answers(tmp_path) == []
