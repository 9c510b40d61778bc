from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.config import GateSettings, LoraSettings, ModelSettings
from aegis.errors import AdapterError
from aegis.export.fold import fold_in_place
from aegis.model.adapted import Adapted, attach
from aegis.model.tags import TagRows, add_tags, end_at_tags, known_tags
from tests.conftest import ARCHITECTURES, byte_tokenizer, tiny_model

SETTINGS = ModelSettings(
    lora=LoraSettings(rank=4, layers=(0.5, 1.0)), gates=GateSettings(layers=(0.5, 1.0))
)


def tagged(architecture: str = "llama", **changes: Any) -> tuple[Adapted, Any, Any]:
    tokenizer, model = byte_tokenizer(), tiny_model(architecture, **changes)
    tags = add_tags(tokenizer, model)
    torch.manual_seed(1)
    return attach(model, SETTINGS, tags=tags), tokenizer, tags


def open_up(adapted: Adapted) -> None:
    """Everything that trains gets a value, as training would give it."""
    torch.manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and not name.startswith("head."):
            parameter.data.normal_(std=0.1)
    adapted.set_alpha(1.0)


def test_tags_are_one_token_each_and_come_back() -> None:
    _, tokenizer, tags = tagged()
    ids = tokenizer("<think-task>a</think-task><final>b</final>", add_special_tokens=False)[
        "input_ids"
    ]
    assert [ids[0], ids[2]] == list(tags.pairs[0])
    assert [ids[3], ids[5]] == list(tags.pairs[4])
    assert known_tags(tokenizer) == tags
    assert (
        tokenizer.decode(ids, skip_special_tokens=True)
        == "<think-task>a</think-task><final>b</final>"
    )


@pytest.mark.parametrize("ends", [None, 1, [1, 7]])
def test_a_generated_answer_ends_at_any_tag(ends: Any) -> None:
    tokenizer, model = byte_tokenizer(), tiny_model()
    tags = add_tags(tokenizer, model, decisions=True)
    model.generation_config.eos_token_id = ends
    end_at_tags(model, tokenizer)
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id[0]
    assert (7 in model.generation_config.eos_token_id) == (ends == [1, 7])
    for wanted, written in ((tags.pairs[0][0], 4), (tags.pairs[4][1], 4), (tags.decisions[0], 9)):
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
        bias = {(wanted,): 99.0}
        ids = model.generate(torch.tensor([[5, 6, 8]]), sequence_bias=bias, **options)
        assert ids.shape[1] == written  # a decision is what an answer begins with: no end


def test_tags_start_from_what_the_base_knows() -> None:
    plain, line_break = (
        tiny_model(),
        byte_tokenizer()("\n", add_special_tokens=False)["input_ids"][-1],
    )
    pieces = byte_tokenizer()("<think-task>", add_special_tokens=False)["input_ids"]
    adapted, _, tags = tagged()
    old = plain.get_output_embeddings().weight
    rows = adapted.base.get_output_embeddings().weight
    torch.testing.assert_close(rows[tags.pairs[0][0]], old[pieces].mean(0))
    assert all(torch.equal(rows[closing], old[line_break]) for _, closing in tags.pairs)


@pytest.mark.parametrize("vocabulary", [262, 400])
def test_untrained_rows_change_nothing(vocabulary: int) -> None:
    plain = tiny_model(vocab_size=vocabulary, tie_word_embeddings=True)
    adapted, _, _ = tagged(vocab_size=vocabulary, tie_word_embeddings=True)
    ids = torch.randint(0, 260, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(adapted.base(ids).logits[..., :260], plain(ids).logits[..., :260])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_folding_writes_the_rows(architecture: str, tied: bool) -> None:
    adapted, _, tags = tagged(architecture, tie_word_embeddings=tied)
    open_up(adapted)
    ids = torch.tensor([[5, 6, *tags.ids, 9, 10]])
    with torch.no_grad():
        live = adapted.base(ids).logits
        folded = fold_in_place(adapted)(ids).logits
    assert torch.allclose(live, folded, atol=2e-4), (live - folded).abs().max()


def test_rows_are_saved_and_loaded(tmp_path: Path) -> None:
    for tied in (True, False):
        adapted, _, tags = tagged(tie_word_embeddings=tied)
        open_up(adapted)
        assert adapted.rows
        adapted.rows.save(tmp_path)
        again = TagRows.of(tiny_model(tie_word_embeddings=tied), tags)
        again.load(tmp_path)
        assert torch.equal(again.input, adapted.rows.input)
        assert torch.equal(again.output, adapted.rows.output)
    with pytest.raises(AdapterError, match="does not fit"):
        again.load(tmp_path / "none")


def test_only_batches_with_tags_need_a_gradient_below_the_adapted_layers() -> None:
    adapted, _, tags = tagged()
    embedding = adapted.base.get_input_embeddings()
    assert not embedding(torch.tensor([[3, 4]])).requires_grad
    assert embedding(torch.tensor([[3, tags.ids[0]]])).requires_grad


def test_tokens_beyond_the_table_get_the_same_rows_every_time() -> None:
    tables = []
    for seed in (1, 2):
        tokenizer, model = byte_tokenizer(), tiny_model(vocab_size=261)
        tokenizer.add_tokens(["<|endoftext|>"])  # as GGUF's converter leaves one
        torch.manual_seed(seed)
        tags = add_tags(tokenizer, model)
        assert model.config.vocab_size == len(tokenizer) == max(tags.ids) + 1
        assert add_tags(tokenizer, model) == tags
        tables.append(model.get_output_embeddings().weight)
    assert torch.equal(*tables)
    tokenizer.add_tokens(["<|late|>"])
    add_tags(tokenizer, model)
    assert model.config.vocab_size == len(tokenizer)
