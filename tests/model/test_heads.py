from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aegis.errors import DataError, ModelError
from aegis.model.heads import DecisionHead, Pooling, pool
from aegis.model.prompt import PromptEncoder, by_length, pad, require_fit

POOLINGS: tuple[Pooling, ...] = ("last", "mean", "last+mean")


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_no_pooled_state(pooling: Pooling, left: bool) -> None:
    rows = [torch.randn(n, 8) for n in (3, 5, 1)]
    _, mask = pad([[7] * len(row) for row in rows], value=0, left=left)
    hidden = torch.full((3, 5, 8), 99.0)
    for number, row in enumerate(rows):
        hidden[number][mask[number].bool()] = row
    for number, row in enumerate(rows):
        alone = pool(row[None], torch.ones(1, len(row)).long(), pooling=pooling)
        torch.testing.assert_close(pool(hidden, mask, pooling=pooling)[number], alone[0])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_head_survives_saving(tmp_path: Path, pooling: Pooling) -> None:
    head = DecisionHead(16, pooling=pooling, system_prompt="静かに")
    torch.nn.init.normal_(head.linear.weight)
    head.save(tmp_path)
    again = DecisionHead.load(tmp_path)
    hidden, mask = torch.randn(2, 4, 16), torch.ones(2, 4).long()
    assert torch.equal(again(hidden, mask), head(hidden, mask))
    assert again.system_prompt == "静かに"


def test_a_damaged_head_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a readable decision head"):
        DecisionHead.load(tmp_path)
    (tmp_path / "decision_head.safetensors").write_bytes(b"\x08")
    with pytest.raises(ModelError, match="not a readable decision head"):
        DecisionHead.load(tmp_path)


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [5, 1, 9, 3, 3, 40, 2]
    batches = by_length(lengths, batch_tokens=12)
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    assert all(
        len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 12 for batch in batches
    )


def test_prompts_use_the_chat_template_or_a_plain_form(tokenizer) -> None:
    assert (
        tokenizer.decode(PromptEncoder(tokenizer, "S").ids("Hi"))
        == "<|system|>S<|end|><|user|>Hi<|end|><|assistant|>"
    )
    assert "<|system|>" not in tokenizer.decode(PromptEncoder(tokenizer).ids("Hi"))
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
            + template
        )
        assert "<|user|>S\n\nHi" in tokenizer.decode(PromptEncoder(tokenizer, "S").ids("Hi"))
        tokenizer.chat_template = None
        assert "### User:\nHi" in tokenizer.decode(PromptEncoder(tokenizer).ids("Hi"))
    finally:
        tokenizer.chat_template = template


def test_a_prompt_beyond_the_context_is_told() -> None:
    with pytest.raises(DataError, match="f:3: the prompt has 5 tokens and the model reads 4"):
        require_fit([1] * 5, limit=4, where="f:3")
