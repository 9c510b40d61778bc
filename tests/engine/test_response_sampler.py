from __future__ import annotations

import pytest
import torch

from aegis.engine.response_sampler import Limits, ResponseSampler, allowed_tokens, hold_gates
from aegis.model.tags import add_tags, verdict_ids
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import TAGS, VERDICT_SECTION, compose, looks_like_a_tag, parse
from tests.conftest import ARCHITECTURES, byte_tokenizer, tiny_model
from tests.model.test_tags import open_up, tagged

LIMITS = Limits(section=6, final=9)
PROMPTS = [(2, 40, 41), (2, 50, 51, 52, 53, 54), (2, 60)]
DECISIONS = [Decision.ALLOW, Decision.ESCALATION, Decision.REFUSE]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_response_has_the_protocols_form(architecture: str) -> None:
    adapted, tokenizer, tags = tagged(architecture)
    open_up(adapted)
    thinker = ResponseSampler(adapted.base, tokenizer, tags, LIMITS)
    torch.manual_seed(0)
    paths = thinker(PROMPTS * 4, DECISIONS * 4, temperature=1.5)
    for path, prompt in zip(paths, PROMPTS * 4, strict=True):
        assert path.prompt == prompt
        assert len(path.ids) <= LIMITS.total
        written = [number for number in path.ids if number in tags.ids]
        assert written == list(tags.ids)
        text = tokenizer.decode(path.ids)
        for tag in TAGS:
            text = text.replace(tag, "")
        assert not looks_like_a_tag(text)
        assert len(path.closed) == 5
        assert parse(compose(path.thinking())) == path.thinking()
        assert not any(body in repr(path) for body in path.bodies if len(body) > 3)
        opened = [
            place
            for place, number in enumerate(path.ids)
            if number in [pair[0] for pair in tags.pairs]
        ]
        assert not any(path.chosen[place] for place in opened)


@pytest.mark.parametrize("section", [2, 6, 40])
def test_the_policy_section_begins_with_what_was_decided(section: int) -> None:
    """The line is the engine's, not the body's; it counts toward the section's limit, and a token
    is left in any case."""
    adapted, tokenizer, tags = tagged()
    thinker = ResponseSampler(adapted.base, tokenizer, tags, Limits(section=section, final=3))
    for path, decision in zip(thinker(PROMPTS, DECISIONS), DECISIONS, strict=True):
        line = verdict_ids(tokenizer, decision)[: section - 1]
        at = path.ids.index(tags.pairs[VERDICT_SECTION][0]) + 1
        assert path.ids[at : at + len(line)] == line
        assert not any(path.chosen[at : at + len(line)])
        assert path.chosen[at + len(line)]
        assert path.part[at : at + len(line)] == (VERDICT_SECTION,) * len(line)
        assert decision.name not in path.bodies[VERDICT_SECTION]
        assert len(path.ids) <= thinker.limits.total
    assert len({verdict_ids(tokenizer, decision) for decision in Decision}) == len(Decision)


def test_sampling_with_a_cache_agrees_with_a_whole_pass() -> None:
    """The most probable token, found step by step, is the one that a pass over the finished
    response finds."""
    adapted, tokenizer, tags = tagged()
    open_up(adapted)
    with hold_gates(adapted.all_gates()):
        paths = ResponseSampler(adapted.base, tokenizer, tags, LIMITS)(
            PROMPTS, DECISIONS, temperature=0
        )
    allowed = allowed_tokens(tokenizer, width=400)
    for path in paths:
        ids = torch.tensor([[*path.prompt, *path.ids]])
        with torch.no_grad():
            logits = adapted.base(ids).logits[0]
        for place, chosen in enumerate(path.chosen):
            if chosen:
                row = logits[len(path.prompt) + place - 1].clone()
                closing = tags.pairs[path.part[place]][1]
                own = row[closing].clone()
                row[~allowed] = -torch.inf
                row[closing] = own if path.may_close[place] else -torch.inf
                assert int(row.argmax()) == path.ids[place]


def test_the_same_seed_gives_the_same_responses() -> None:
    adapted, tokenizer, tags = tagged()
    thinker = ResponseSampler(adapted.base, tokenizer, tags, LIMITS)
    first, second, other = (
        thinker(PROMPTS, DECISIONS, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert first == second != other


def test_tag_like_text_in_ordinary_tokens_ends_the_body() -> None:
    adapted, tokenizer, tags = tagged()
    thinker = ResponseSampler(adapted.base, tokenizer, tags, Limits(section=20, final=20))
    spelled = tokenizer("ok <final>", add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    spelled = [
        number
        for text in "ok <final"
        for number in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    steps = iter(range(10**6))

    def scripted(*_: object) -> list[int | None]:
        row = rows[0]
        return [None] if thinker.forced(row) else [spelled[min(len(row.body), len(spelled) - 1)]]

    rows: list = []
    original = thinker.advance
    thinker._choose = scripted  # pyright: ignore[reportAttributeAccessIssue]

    def remembered(row: object, token: int | None) -> int | None:
        next(steps)
        rows[:] = [row]
        return original(row, token)  # pyright: ignore[reportArgumentType]

    thinker.advance = remembered  # pyright: ignore[reportAttributeAccessIssue]
    rows.append(_row())
    (path,) = thinker([(2, 40)], [Decision.DENY])
    assert path.bodies == ("ok <fina",) * 5
    assert not any(path.closed)


def _row() -> object:
    from aegis.engine.response_grammar import PartialResponse

    row = PartialResponse((2, 40))
    row.add(0, chosen=False)
    return row


def test_a_decision_that_is_a_token_is_written_first_and_nowhere_else() -> None:
    tokenizer, model = byte_tokenizer(), tiny_model()
    tags = add_tags(tokenizer, model, decisions=True)
    sampler = ResponseSampler(model, tokenizer, tags, LIMITS)
    paths = sampler(PROMPTS * 3, DECISIONS * 3, temperature=2.0)
    for path, decision in zip(paths, DECISIONS * 3, strict=True):
        assert path.ids[:2] == (tags.decisions[decision], tags.pairs[0][0])
        assert not any(path.chosen[:2])
        assert not set(path.ids[1:]) & set(tags.decisions)
        assert parse(compose(path.thinking())) == path.thinking()
    assert not any(sampler.allowed[list(tags.decisions)])
