from __future__ import annotations

from aegis.engine.response_grammar import Limits, PartialResponse, ResponseGrammar, Sampling
from aegis.model.tags import add_tags
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import VERDICT_SECTION, compose
from tests.conftest import byte_tokenizer, tiny_model


def written(text: str, limits: Limits) -> tuple[ResponseGrammar, PartialResponse]:
    """What comes out where the model wants to write `text` in every body, a byte at a time, and
    never to close one."""
    tokenizer, model = byte_tokenizer(), tiny_model()
    grammar = ResponseGrammar(tokenizer, add_tags(tokenizer, model))
    tokens = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in text]
    row = PartialResponse((2, 40), Sampling(limits), grammar.verdicts[Decision.DENY])
    grammar.begin(row)
    while not row.whole:
        token = None if grammar.forced(row) else tokens[len(row.body) % len(tokens)]
        grammar.advance(row, token)
    return grammar, row


def test_the_engine_closes_what_reaches_its_limit() -> None:
    grammar, row = written("abc", Limits(section=7, final=4))
    response = row.finish()
    assert response.bodies == ("abcabca", "abcabca", "ab", "abcabca", "abca")
    assert not any(response.closed)
    assert len(response.ids) <= Limits(section=7, final=4).total
    assert [token for token in response.ids if token in grammar.tags.ids] == list(grammar.tags.ids)
    assert compose(response.thinking()).count("DENY") == 0
    opened = response.ids.index(grammar.tags.pairs[VERDICT_SECTION][0]) + 1
    verdict = grammar.verdicts[Decision.DENY]
    assert response.ids[opened : opened + len(verdict)] == verdict


def test_a_tag_spelled_out_ends_its_body() -> None:
    _, row = written("ok <final>", Limits(section=20, final=20))
    assert set(row.finish().bodies) == {"ok <fina"}


def test_a_body_of_nothing_visible_has_a_stand_in() -> None:
    _, row = written(" ", Limits(section=6, final=3))
    assert row.finish().bodies == ("…",) * 5
    assert row.finish().usable_thinking() is not None


def test_the_model_may_close_once_something_visible_is_there() -> None:
    tokenizer, model = byte_tokenizer(), tiny_model()
    grammar = ResponseGrammar(tokenizer, add_tags(tokenizer, model))
    row = PartialResponse((2,))
    grammar.begin(row)
    assert not grammar.may_close(row)
    grammar.advance(row, tokenizer("x", add_special_tokens=False)["input_ids"][0])
    assert grammar.may_close(row)
    grammar.advance(row, grammar.tags.pairs[0][1])
    assert (row.part, row.closed, row.bodies) == (1, [True], ["x"])
