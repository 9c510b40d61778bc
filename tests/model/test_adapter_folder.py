from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aegis.config import ModelSettings
from aegis.errors import AdapterError
from aegis.model.adapter_folder import (
    AdapterCard,
    load_adapter,
    read_card,
    require_base,
    save_adapter,
)
from aegis.model.base import Base, resolve_base
from tests.model.test_adapted import IDS, MASK, randomised


def card_for(base: Base) -> AdapterCard:
    facts = {"spec": base.spec, "fingerprint": base.fingerprint}
    return AdapterCard(facts, ModelSettings().model_dump(mode="json"), 1.618, {}, "session")


@torch.no_grad()
def test_an_adapter_survives_saving(base_folder: Path, tmp_path: Path) -> None:
    from aegis.storage.artifact import writing

    base = resolve_base(str(base_folder))
    adapted = randomised(base.load_model(dtype=torch.float32))
    hidden = adapted.hidden(IDS, MASK)
    with writing(tmp_path / "adapter", kind="adapter", fingerprint="f") as staging:
        save_adapter(staging, adapted, card_for(base))
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "so8.json",
        "so8.safetensors",
    } < files
    card = read_card(tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter", base.load_model(dtype=torch.float32), card)
    assert torch.equal(again.hidden(IDS, MASK), hidden)
    assert torch.equal(again.logits(hidden), adapted.logits(hidden))
    assert torch.equal(again.decide(hidden, MASK), adapted.decide(hidden, MASK))


def test_an_adapter_for_another_base_is_told(
    base_folder: Path, save_base: Callable[..., Path], tmp_path: Path
) -> None:
    other = resolve_base(str(save_base("llama", seed=9)))
    with pytest.raises(AdapterError, match="made for another base"):
        require_base(card_for(resolve_base(str(base_folder))), other, folder=tmp_path)


def test_a_folder_that_is_no_adapter_is_told(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="not a whole adapter folder"):
        read_card(tmp_path)
