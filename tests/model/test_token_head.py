"""Four tokens that decide: trained beside the weights, folded into them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.config import GateSettings, LoraSettings, ModelSettings
from aegis.errors import ModelError
from aegis.export.fold import fold_in_place
from aegis.model import token_head
from aegis.model.adapted import Adapted, attach
from aegis.model.adapter_folder import AdapterCard, load_adapter, save_adapter
from aegis.model.heads import DecisionHead
from aegis.model.lm_head import vocabulary_logits
from aegis.model.tags import Tags, add_tags, known_tags
from aegis.model.token_head import TokenHead, folded_head, read_metadata, system_prompt_beside
from aegis.protocol.decisions import TOKENS
from tests.conftest import ARCHITECTURES, byte_tokenizer, random_model, tiny_model
from tests.model.architectures import tiny_config

LORA = LoraSettings(rank=4, layers=(0.5, 1.0))
MASK = torch.ones(2, 7, dtype=torch.long)
IDS = torch.randint(5, 250, MASK.shape, generator=torch.Generator().manual_seed(0))


def deciding(model: Any, **changes: Any) -> tuple[Adapted, Tags]:
    """Adapt a model with every trainable number at random, as training would leave it."""
    settings = ModelSettings(head="token", lora=LORA, **changes)
    tags = add_tags(byte_tokenizer(), model, decisions=True)
    adapted = attach(model, settings, tags=tags)
    torch.manual_seed(2)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    assert isinstance(adapted.head, TokenHead)
    adapted.head.start.normal_(std=0.1)
    adapted.set_alpha(1.0)
    return adapted, tags


@torch.no_grad()
@pytest.mark.parametrize("lm_head", ["auto", False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_live_and_folded_decide_alike(architecture: str, tied: bool, lm_head: Any) -> None:
    model = tiny_model(architecture, tie_word_embeddings=tied)
    adapted, tags = deciding(model, gates=GateSettings(layers=(0.5, 1.0), lm_head=lm_head))
    ids = torch.cat([IDS, torch.tensor([tags.decisions[:1], tags.decisions[3:]])], dim=1)
    mask = torch.ones_like(ids)
    live = adapted.decide(adapted.hidden(ids, mask), mask)
    whole = adapted.base(ids).logits
    torch.testing.assert_close(live, whole[:, -1, list(tags.decisions)], atol=1e-4, rtol=0)
    torch.testing.assert_close(fold_in_place(adapted)(ids).logits, whole, atol=3e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["granite", "cohere", "gemma2"])
def test_the_models_own_scale_and_cap_count(architecture: str) -> None:
    model = random_model(tiny_config(architecture, vocab_size=400))
    adapted, tags = deciding(model)
    hidden = adapted.hidden(IDS, MASK)
    expected = vocabulary_logits(adapted.base, hidden[:, -1])[:, list(tags.decisions)]
    torch.testing.assert_close(adapted.decide(hidden, MASK), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "granite"])
def test_a_probe_becomes_rows_that_win_at_a_prompts_end_only(architecture: str) -> None:
    config = tiny_config(architecture, vocab_size=400, hidden_size=64)
    model = random_model(config)
    tags = add_tags(byte_tokenizer(), model, decisions=True)
    adapted = attach(model, ModelSettings(head="token"), tags=tags)
    head = adapted.head
    assert isinstance(head, TokenHead)
    torch.manual_seed(0)
    ends, others, behind = torch.randn(300, 64), torch.randn(900, 64), torch.randn(200, 64)
    ends[:, :4] += 6.0  # what all ends have in common
    behind[:, :4] += 6.0  # and what stands behind a decision, but for one dimension
    behind[:, 4] += 6.0
    head.set_scale(ends)
    head.linear.weight.normal_(std=0.3)
    head.linear.bias.copy_(torch.tensor([1.0, 0.0, -5.0, 0.5]))
    probed = head.from_pooled(ends)
    head.settle(model, ends, others, behind, level=9.0)
    rows = head.logits(model, ends[:, None], torch.ones(300, 1))
    assert (rows.argmax(-1) == probed.argmax(-1)).float().mean() > 0.95
    assert (rows.softmax(-1) - probed.softmax(-1)).abs().mean() < 0.03
    assert rows.logsumexp(-1).mean() == pytest.approx(9.0, abs=0.5)
    for places in (others, behind):
        elsewhere = head.logits(model, places[:, None], torch.ones(len(places), 1))
        assert elsewhere.logsumexp(-1).mean() < 6.0


@torch.no_grad()
@pytest.mark.parametrize("few", [24, 400])
def test_few_places_at_which_a_decision_intrudes_count_for_more(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def intrusions(harder: float) -> tuple[int, float]:
        monkeypatch.setattr(token_head, "_HARDER", harder)
        torch.manual_seed(0)
        model = random_model(tiny_config("llama", vocab_size=400, hidden_size=64))
        tags = add_tags(byte_tokenizer(), model, decisions=True)
        model.get_output_embeddings().weight.normal_(std=0.7)
        head = attach(model, ModelSettings(head="token"), tags=tags).head
        assert isinstance(head, TokenHead)
        ends, others, behind = torch.randn(300, 64), torch.randn(900, 64), torch.randn(200, 64)
        ends[:, :4] += 5.0
        others[:few, :4] += 5.5  # nearly an end
        head.set_scale(ends)
        head.linear.weight.normal_(std=0.3)
        wanted = head.from_pooled(ends).argmax(-1)
        head.settle(model, ends, others, behind, level=24.0)
        same = (head.logits(model, ends[:, None], torch.ones(300, 1)).argmax(-1) == wanted).float()
        return len(head._intruding(model, others)), float(same.mean())

    (before, usual), (after, same) = intrusions(1.0), intrusions(10.0)
    assert before > 3
    assert (after < before / 2) == (few == 24)
    assert same > usual - 0.05


def test_the_tokens_are_hidden_and_known_again(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    assert known_tags_of(tokenizer, decisions=False).decisions == ()
    tags = known_tags_of(tokenizer, decisions=True)
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert known_tags(again) == tags
    ids = again("".join(TOKENS) + "Hi<final>", add_special_tokens=False)["input_ids"]
    assert tuple(ids[:4]) == tags.decisions
    assert again.decode(ids, skip_special_tokens=True) == "Hi<final>"


def known_tags_of(tokenizer: Any, *, decisions: bool) -> Tags:
    return add_tags(tokenizer, tiny_model(), decisions=decisions)


@torch.no_grad()
def test_an_adapter_is_saved_and_loaded(tmp_path: Path) -> None:
    adapted, tags = deciding(tiny_model(), system_prompt="S")
    settings = ModelSettings(head="token", lora=LORA, system_prompt="S")
    card = AdapterCard({}, settings.model_dump(mode="json"), 1.0, {}, "session")
    save_adapter(tmp_path, adapted, card)
    assert not (tmp_path / DecisionHead.file).exists()
    model = tiny_model()
    add_tags(byte_tokenizer(), model, decisions=True)
    again = load_adapter(tmp_path, model, card, tags=tags)
    assert again.head.system_prompt == "S"
    before, after = (each.decide(each.hidden(IDS, MASK), MASK) for each in (adapted, again))
    assert torch.equal(before, after)


def test_a_folder_tells_what_decides(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    assert folded_head(tmp_path, tokenizer, width=32) is None
    assert read_metadata(tmp_path) == {}
    assert system_prompt_beside(tmp_path) is None
    decision = {"head": "token", "system_prompt": "S"}
    (tmp_path / "metadata.json").write_text(json.dumps({"decision": decision}))
    known_tags_of(tokenizer, decisions=False)
    with pytest.raises(ModelError, match=r"lacks <ALLOW>, .*; fold the adapter again"):
        folded_head(tmp_path, tokenizer, width=32)
    tags = known_tags_of(tokenizer, decisions=True)
    head = folded_head(tmp_path, tokenizer, width=32)
    assert isinstance(head, TokenHead)
    assert (head.ids, head.system_prompt, head.rows().any().item()) == (tags.decisions, "S", False)
    assert system_prompt_beside(tmp_path) == "S"
    DecisionHead(32, system_prompt="T").save(tmp_path)
    assert type(folded_head(tmp_path, tokenizer, width=32)) is DecisionHead
    assert system_prompt_beside(tmp_path) == "T"
