from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from aegis.config import GateSettings, LoraSettings, ModelSettings
from aegis.errors import AdapterError, ModelError
from aegis.export.fold import fold_in_place
from aegis.model.adapted import Adapted, attach, check_attachable, freeze
from aegis.model.adapter_folder import (
    AdapterCard,
    load_adapter,
    read_card,
    require_base,
    save_adapter,
)
from aegis.model.base import Base, ModelFolder, resolve_base, save_tokenizer
from aegis.model.lm_head import vocabulary_logits
from tests.conftest import ARCHITECTURES, tiny_model

IDS = torch.arange(5, 25).reshape(2, 10)
MASK = torch.ones_like(IDS)


def randomised(model: Any, settings: ModelSettings | None = None) -> Adapted:
    """Attached, with every trainable number random, as after training."""
    torch.manual_seed(5)
    adapted = attach(model, settings or ModelSettings()).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.set_alpha(1.618)
    return adapted


@torch.no_grad()
@pytest.mark.parametrize("mode", ["geodesic", "additive"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma2"])
def test_attaching_changes_no_bit_and_folding_changes_nothing_more(
    architecture: str, mode: Literal["geodesic", "additive"]
) -> None:
    settings = ModelSettings(gates=GateSettings(mode=mode))
    model = tiny_model(architecture, tie_word_embeddings=True)
    before = model(input_ids=IDS).logits
    adapted = attach(model, settings)
    adapted.set_alpha(-math.inf)
    for gate in adapted.all_gates():  # closed, whatever its generators
        torch.nn.init.normal_(gate.generators)
    assert torch.equal(model(input_ids=IDS).logits, before)
    adapted = randomised(tiny_model(architecture, tie_word_embeddings=True), settings)
    live = adapted.base(input_ids=IDS).logits
    assert float((live - before).abs().max()) > 1e-2
    folded = fold_in_place(adapted)
    after = folded(input_ids=IDS).logits
    torch.testing.assert_close(after, live, atol=2e-4, rtol=0)
    assert not any("lora" in name for name, _ in folded.named_parameters())


@torch.no_grad()
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma2"])
def test_hidden_states_and_logits_are_the_models_own(architecture: str) -> None:
    adapted = randomised(tiny_model(architecture))
    whole = adapted.base(input_ids=IDS, attention_mask=MASK).logits
    torch.testing.assert_close(
        adapted.logits(adapted.hidden(IDS, MASK)), whole, atol=1e-5, rtol=1e-5
    )


def test_gates_sit_on_lm_head_and_the_middle_layers() -> None:
    adapted = attach(tiny_model("llama", num_hidden_layers=8), ModelSettings())
    expected = [f"model.layers.{i}.self_attn.o_proj" for i in (2, 3, 4, 5)]
    assert list(adapted.gate_names) == [*expected, "lm_head"]
    more = GateSettings(lm_head=False, layers=(0, 0), also=("*.0.mlp.down_proj",))
    assert attach(tiny_model(), ModelSettings(gates=more)).gate_names == (
        "model.layers.0.mlp.down_proj",
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_attachments_train(architecture: str) -> None:
    model = tiny_model(architecture)
    adapted = attach(model, ModelSettings())
    report = freeze(adapted)
    assert report.total == sum(p.numel() for p in adapted.parameters())
    assert report.trainable["gates"] == sum(g.generators.numel() for g in adapted.all_gates())
    assert [kind for kind, count in report.trainable.items() if not count] == [
        "tags"
    ]  # attached without any
    assert 0 < report.percent < 50
    before = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    hidden = adapted.hidden(IDS, MASK)
    (
        adapted.logits(hidden).float().pow(2).mean() + adapted.decide(hidden, MASK)[:, 0].sum()
    ).backward()
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)
    torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad]).step()
    assert all(
        torch.equal(p, before[name])
        for name, p in adapted.named_parameters()
        if not p.requires_grad
    )


def test_a_base_weight_that_would_train_is_refused() -> None:
    adapted = attach(tiny_model(), ModelSettings())
    adapted.base.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ModelError, match="would train"):
        freeze(adapted)


def test_gemma_keeps_no_gate_on_lm_head_and_says_why() -> None:
    assert "lm_head" not in attach(tiny_model("gemma"), ModelSettings()).gate_names
    with pytest.raises(ModelError, match=r"drops lm_head.weight; set it to auto or false"):
        attach(tiny_model("gemma"), ModelSettings(gates=GateSettings(lm_head=True)))


def test_targets_that_match_nothing_are_told() -> None:
    with pytest.raises(ModelError, match="no linear layer matches"):
        attach(tiny_model(), ModelSettings(lora=LoraSettings(targets=("w_pack",))))
    with pytest.raises(ModelError, match=r"'nothing\*' matches no linear layer"):
        attach(tiny_model(), ModelSettings(gates=GateSettings(also=("nothing*",))))


def test_a_base_with_missing_tensors_is_told(base_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(base_folder, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.up_proj.weight .*missing"):
        ModelFolder(tmp_path / "base").load_model(dtype=torch.float32)


def test_what_cannot_be_attached_is_told_before_weights_are_loaded(
    save_base: Callable[..., Path],
) -> None:
    base = resolve_base(str(save_base("gemma")))
    (base.folder / "model.safetensors").write_bytes(b"not read")
    check_attachable(base, ModelSettings())
    for settings, message in [
        (ModelSettings(gates=GateSettings(lm_head=True)), "drops lm_head.weight"),
        (ModelSettings(gates=GateSettings(also=("none*",))), "matches no linear layer"),
        (ModelSettings(lora=LoraSettings(targets=("w_pack",))), "no linear layer matches"),
    ]:
        with pytest.raises(ModelError, match=message):
            check_attachable(base, settings)


def test_a_model_of_another_kind_is_told(tmp_path: Path) -> None:
    from transformers import ViTConfig

    ViTConfig(hidden_size=32).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="no causal language model"):
        check_attachable(resolve_base(str(tmp_path)), ModelSettings())


def test_a_changed_tokenizer_makes_another_base(save_base: Callable[..., Path]) -> None:
    folder = save_base("llama", seed=4)
    before = resolve_base(str(folder)).fingerprint
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert resolve_base(str(folder)).fingerprint != before


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: "no/such/folder/here", "no such folder"),
        (lambda _: "missing.gguf", "no such file"),
        (lambda p: p / "empty", "no config.json"),
        (lambda p: p / "note.txt", "not a GGUF file"),
        (lambda p: p / "weightless", r"no model\*.safetensors"),
        (lambda p: p / "odd", "multiple of 8 for .* gates, got 36"),
        (lambda p: p / "strange", "not that of a known model"),
        (lambda p: p / "text.gguf", "cannot be converted"),
    ],
)
def test_bases_that_are_no_models_are_told(
    tmp_path: Path, monkeypatch: Any, make: Callable, message: str
) -> None:
    import json

    monkeypatch.setenv("AEGIS_HOME", str(tmp_path / "home"))
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "text.gguf").write_text("not a gguf")
    for name, config in {
        "empty": None,
        "weightless": {"model_type": "llama"},
        "odd": {"model_type": "llama", "hidden_size": 36, "num_attention_heads": 3},
        "strange": {"model_type": "abacus"},
    }.items():
        (tmp_path / name).mkdir()
        if config:
            (tmp_path / name / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        resolve_base(str(make(tmp_path)))


def test_a_cached_base_whose_manifest_cannot_be_read_is_converted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_folder: Path
) -> None:
    monkeypatch.setenv("AEGIS_HOME", str(tmp_path / "home"))
    conversions = []

    def convert(_gguf: Path, staging: Path, *, spec: str) -> None:
        conversions.append(spec)
        shutil.copytree(base_folder, staging, dirs_exist_ok=True)

    monkeypatch.setattr("aegis.model.base._convert", convert)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    first = resolve_base(str(tmp_path / "x.gguf"))
    assert resolve_base(str(tmp_path / "x.gguf")).fingerprint == first.fingerprint
    assert len(conversions) == 1
    (first.folder / "manifest.json").write_text('{"version": 1}')
    assert resolve_base(str(tmp_path / "x.gguf")).fingerprint == first.fingerprint
    assert len(conversions) == 2


def test_a_saved_tokenizer_does_not_tell_whether_the_machine_was_offline(
    tmp_path: Path, base_folder: Path
) -> None:
    tokenizer = ModelFolder(base_folder).load_tokenizer()
    texts = []
    for offline in (True, False):
        tokenizer.init_kwargs |= {"local_files_only": offline, "is_local": offline}
        save_tokenizer(tokenizer, tmp_path / str(offline))
        texts.append((tmp_path / str(offline) / "tokenizer_config.json").read_text())
    assert texts[0] == texts[1]
    assert ModelFolder(tmp_path / "True").load_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_the_hub_is_asked_for_what_looks_like_a_hub_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="the hub could not give it"):
        resolve_base("nobody-at-all/no-such-model")


@torch.no_grad()
def test_a_base_loads_and_tells_its_tokenizer(base_folder: Path) -> None:
    model, tokenizer = (
        ModelFolder(base_folder).load_model(dtype=torch.float32),
        ModelFolder(base_folder).load_tokenizer(),
    )
    hidden = model.get_decoder()(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(vocabulary_logits(model, hidden), model(input_ids=IDS).logits)
    assert tokenizer.pad_token_id is not None
