from __future__ import annotations

from typing import Any

from aegis.config import GenerateSettings
from aegis.engine.generate import complete, most_probable
from aegis.model.prompt import PLAIN_TEMPLATE
from aegis.model.tags import add_tags
from tests.conftest import byte_tokenizer, tiny_model


def test_the_same_seed_gives_the_same_texts(tokenizer: Any) -> None:
    model = tiny_model()
    settings = GenerateSettings(max_new_tokens=6, temperature=1.0, top_p=0.9)
    first = complete(model, tokenizer, ["a", "bb", "ccc"], settings, seed=1)
    assert first == complete(model, tokenizer, ["a", "bb", "ccc"], settings, seed=1)
    assert first != complete(model, tokenizer, ["a", "bb", "ccc"], settings, seed=2)
    assert len(first) == 3


def test_the_most_probable_text_of_a_prompt_is_the_same_in_any_batch(tokenizer: Any) -> None:
    model, prompts = tiny_model(), ["a", "bb", "ccc"]
    together = most_probable(model, tokenizer, prompts, max_new_tokens=6)
    alone = [most_probable(model, tokenizer, [each], max_new_tokens=6)[0] for each in prompts]
    assert together == alone
    assert len(set(together)) > 1


def test_an_answer_in_plain_chat_ends_at_a_tag() -> None:
    tokenizer, model = byte_tokenizer(), tiny_model()
    (tag,) = add_tags(tokenizer, model).pairs[4][1:]
    model.generation_config.sequence_bias = {(tag,): 99.0}
    assert most_probable(model, tokenizer, ["a"], max_new_tokens=3) == [""]


def test_a_base_is_asked_behind_examples_and_ends_at_an_empty_line() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = PLAIN_TEMPLATE
    model, prompts = tiny_model(), ["a", "bb"]
    plain = most_probable(model, tokenizer, prompts, max_new_tokens=6)
    asked = most_probable(model, tokenizer, prompts, max_new_tokens=6, base=True)
    assert asked != plain
    assert not any("\n\n" in text for text in asked)
