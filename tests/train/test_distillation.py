"""The pull towards the base's own answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from aegis.config import ModelSettings
from aegis.data.records import parse_record
from aegis.model.adapted import attach
from aegis.model.prompt import PromptEncoder
from aegis.model.tags import add_tags, known_tags
from aegis.protocol.decisions import Decision
from aegis.protocol.fixed_texts import fixed_text
from aegis.train.distillation import distilled, plainly_answered
from aegis.train.examples import EncodingSettings, Example, collate, encode_all
from aegis.train.sft import token_loss
from aegis.train.teacher import BaseAnswer
from tests.conftest import byte_tokenizer, tiny_model

SETTINGS = EncodingSettings(system=None, max_length=400, seed=0, section_weight=0.5)
RECORDS = [
    parse_record({"id": "1", "prompt": "one", "decision": "ALLOW"}, where="t:1"),
    parse_record(
        {"id": "2", "prompt": "two", "decision": "ALLOW", "rationale": "Plain sums."}, where="t:2"
    ),
]


def answer(prompt: str, ids: list[int], *, sure: bool = False) -> BaseAnswer:
    """Return an answer of these ids, all of whose chance lies on them if `sure`."""
    words = torch.tensor([[token, token + 1] for token in ids], dtype=torch.int32)
    logs = torch.tensor([[0.0, -1e4] if sure else [-0.7, -0.7]] * len(ids))
    return BaseAnswer(prompt, tuple(ids), words, logs)


def examples(tokenizer: Any, answers: list[BaseAnswer], thinking: float) -> list[Example]:
    encoder = PromptEncoder(tokenizer)
    return distilled(encoder, answers, RECORDS, SETTINGS, weight=2.0, thinking=thinking)


def test_a_share_stands_behind_thinking_with_the_records_rationale(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    answers = [answer("one", [40, 41, end]), answer("two", [50, 51])]
    thought, plain = examples(tokenizer, answers, 0.5)
    text = tokenizer.decode(thought.ids)
    assert "Plain sums." in text  # those with a reason of their own come first
    opening, closing = known_tags(tokenizer).pairs[-1]
    assert thought.ids[thought.ids.index(opening) + 1 :] == (50, 51)  # cut: nothing closes it
    assert plain.ids[-3:] == (40, 41, end)
    assert closing not in plain.ids
    for example, said in ((thought, 2), (plain, 3)):
        assert example.targets
        assert example.targets.start == len(example.ids) - said
        assert example.weights[-said:] == (2.0,) * said
        assert len(example.weights) == len(example.ids) - example.prompt_length


def test_an_answer_that_ended_is_closed_behind_thinking(tokenizer: Any) -> None:
    (example,) = examples(tokenizer, [answer("one", [40, tokenizer.eos_token_id])], 1.0)
    closing = known_tags(tokenizer).pairs[-1][1]
    assert example.ids[-3:] == (40, closing, tokenizer.eos_token_id)
    assert example.targets
    assert len(example.targets.words) == 1  # the base has no word for the tag


def test_a_base_that_is_sure_teaches_like_a_record() -> None:
    tokenizer, model = byte_tokenizer(), tiny_model()
    adapted = attach(model, ModelSettings(), tags=add_tags(tokenizer, model))
    batch = collate(examples(tokenizer, [answer("one", [40, 41], sure=True)], 0.0), pad_id=1)
    hidden = adapted.hidden(batch.ids, batch.mask)
    logits = adapted.logits(hidden)[0]
    expected = sum(
        2.0 * functional.cross_entropy(logits[place - 1], batch.ids[0, place])
        for place in range(batch.ids.shape[1] - 2, batch.ids.shape[1])
    )
    assert torch.allclose(token_loss(adapted, hidden, batch), torch.as_tensor(expected), rtol=1e-5)


def test_to_say_what_the_base_says_is_the_least_loss() -> None:
    """The cross entropy to a distribution is least, and its gradient nothing, at itself."""
    tokenizer, model = byte_tokenizer(), tiny_model()
    adapted = attach(model, ModelSettings(), tags=add_tags(tokenizer, model))
    (example,) = examples(tokenizer, [answer("one", [40, 41, 42])], 0.0)
    batch = collate([example], pad_id=1)
    hidden = adapted.hidden(batch.ids, batch.mask).detach().requires_grad_()
    logs = torch.log_softmax(adapted.logits(hidden)[0, -4:-1].float(), -1).detach()
    words = logs.topk(5).indices
    own = BaseAnswer("one", (40, 41, 42), words.int(), logs.gather(-1, words))
    batch = collate(examples(tokenizer, [own], 0.0), pad_id=1)
    (gradient,) = torch.autograd.grad(token_loss(adapted, hidden, batch), hidden)
    assert gradient.abs().max() < 1e-4
    off = BaseAnswer("one", (40, 41, 42), (words + 1).int() % 200, logs.gather(-1, words))
    batch = collate(examples(tokenizer, [off], 0.0), pad_id=1)
    (gradient,) = torch.autograd.grad(token_loss(adapted, hidden, batch), hidden)
    assert gradient.abs().max() > 1e-3


THOUGHT = {"task": "t", "safety": "s", "policy": "p", "final": "f"}


def test_plain_chat_begins_with_a_decision_that_is_a_token() -> None:
    tokenizer = byte_tokenizer()
    tags = add_tags(tokenizer, tiny_model(), decisions=True)
    (plain,) = examples(tokenizer, [answer("one", [40, 41])], 0.0)
    assert plain.ids[-3:] == (tags.decisions[0], 40, 41)
    assert plain.weights == (0.5, 2.0, 2.0)
    assert plain.targets
    assert plain.targets.start == len(plain.ids) - 2
    (thought,) = examples(tokenizer, [answer("one", [40, 41])], 1.0)
    behind = thought.ids[thought.prompt_length :]
    assert behind[:2] == (tags.decisions[0], tags.pairs[0][0])
    assert behind[-2:] == (40, 41)


def test_records_answer_in_plain_chat_behind_their_decision() -> None:
    tokenizer = byte_tokenizer()
    tags = add_tags(tokenizer, tiny_model(), decisions=True)
    rows = [
        {"id": f"{n}", "prompt": f"p{n}", "decision": "DENY", "language": "en"} for n in range(4)
    ]
    told = {"decision": "ALLOW", "thinking": THOUGHT, "final": "Yes."}
    rows.append({"id": "9", "prompt": "p9", "language": "en", **told})
    records = [*RECORDS, *(parse_record(row, where="t:1") for row in rows)]
    encoder = PromptEncoder(tokenizer)
    assert len(plainly_answered(encoder, records, SETTINGS, most=3)) == 3
    made = plainly_answered(encoder, records, SETTINGS, most=9)
    assert sorted(example.decision for example in made) == [0, 2, 2, 2, 2]  # RECORDS say nothing
    for example in made:
        text = fixed_text(Decision.DENY, "en") if example.decision else "Yes."
        said = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        behind = list(example.ids[example.prompt_length :])
        assert behind == [tags.decisions[example.decision], *said]
        assert example.weights == (0.5, *[1.0] * len(said))


def test_without_decision_tokens_plain_chat_declines_in_the_fixed_text_alone() -> None:
    tokenizer = byte_tokenizer()
    add_tags(tokenizer, tiny_model())
    row = {"id": "1", "prompt": "p", "decision": "REFUSE", "language": "en"}
    records = [parse_record(row, where="t:1")]
    (made,) = plainly_answered(PromptEncoder(tokenizer), records, SETTINGS, most=9)
    said = [*tokenizer(fixed_text(Decision.REFUSE, "en"))["input_ids"], tokenizer.eos_token_id]
    assert list(made.ids[made.prompt_length :]) == said


@pytest.mark.parametrize("decisions", [False, True])
def test_only_the_engine_opens_the_thinking_where_plain_chat_is_taught(decisions: bool) -> None:
    tokenizer = byte_tokenizer()
    tags = add_tags(tokenizer, tiny_model(), decisions=decisions)
    (thought,) = examples(tokenizer, [answer("one", [40, 41])], 1.0)
    place = len(tags.lead(Decision.ALLOW))
    assert thought.ids[thought.prompt_length + place] == tags.pairs[0][0]
    assert [number for number, weight in enumerate(thought.weights) if not weight] == [place]
    told = {"id": "9", "prompt": "p9", "decision": "ALLOW", "thinking": THOUGHT, "final": "Yes."}
    records, settings = [parse_record(told, where="t:1")], replace(SETTINGS, opens=False)
    ((own,), _) = encode_all(tokenizer, records, [], settings)
    assert [number for number, weight in enumerate(own.weights) if not weight] == [place]
