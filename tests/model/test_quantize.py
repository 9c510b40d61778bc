"""Quantised bases: what trains on them, what they fold into, and what they share with plain
ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.config import (
    ExportSettings,
    GateSettings,
    LoraSettings,
    ModelSettings,
    TrainSettings,
    parse_config,
)
from aegis.errors import ConfigError, MissingPackageError, ModelError
from aegis.export.fold import prepare, write_model
from aegis.model.adapted import Adapted, attach, freeze_report
from aegis.model.adapter_folder import AdapterCard, load_adapter, save_adapter
from aegis.model.base import Base, ModelFolder, resolve_base
from aegis.model.preflight import check_attachable
from aegis.model.quantize import Quantization, count, dequantised, is_quantised, quantised_bytes
from aegis.model.tags import add_tags
from aegis.storage.artifact import writing
from aegis.train.examples import Example
from aegis.train.services import LoopSettings
from aegis.train.sft import SupervisedData, train_sft
from tests.conftest import tiny_model
from tests.model.conftest import WIDE, needs_bitsandbytes
from tests.model.test_roles import IDS, MASK

pytestmark = needs_bitsandbytes
METHODS: tuple[Quantization, ...] = ("nf4", "int8")


def settings(quantization: Quantization, **changes: Any) -> ModelSettings:
    return ModelSettings(
        quantization=quantization,
        lora=LoraSettings(rank=4, alpha=8, layers=(0.5, 1.0)),
        gates=GateSettings(layers=(0.5, 1.0)),
        **changes,
    )


def attached(base: Base, quantization: Quantization, **changes: Any) -> Adapted:
    model = base.load_model(dtype=torch.float32, quantization=quantization, attention="eager")
    tags = add_tags(base.load_tokenizer(), model)
    torch.manual_seed(1)
    return attach(model, settings(quantization, **changes), tags=tags).eval()


def open_up(adapted: Adapted) -> None:
    torch.manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and not name.startswith("head."):
            parameter.data.normal_(std=0.05)
    adapted.set_alpha(1.0)


def quantised(model: Any) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if is_quantised(module)}


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_only_the_decoders_layers_are_quantised(base: Base, method: Quantization) -> None:
    both: list[Any] = [
        base.load_model(dtype=torch.float32, quantization=q) for q in ("none", method)
    ]
    plain, model = both
    found = quantised(model)
    assert {name.split(".")[-1] for name in found} >= {"o_proj", "down_proj"}
    assert len(found) == sum(isinstance(m, torch.nn.Linear) for m in plain.modules()) - 1
    assert not is_quantised(model.get_output_embeddings())
    for table in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(model, table)().weight, getattr(plain, table)().weight)
    assert sum(map(count, model.parameters())) == sum(p.numel() for p in plain.parameters())
    difference = float(
        (model(IDS).logits - plain(IDS).logits).abs().mean() / plain(IDS).logits.std()
    )
    assert 0 < difference < (0.7 if method == "nf4" else 0.1)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_the_codes_are_a_function_of_the_base_alone(llama: Base, method: Quantization) -> None:
    both: list[Any] = [
        llama.load_model(dtype=d, quantization=method) for d in (torch.float32, torch.bfloat16)
    ]
    full, half = both
    assert half.dtype == torch.bfloat16
    for name, layer in quantised(full).items():
        assert torch.equal(layer.weight.data, half.get_submodule(name).weight.data), name
    weights = dequantised(half).state_dict()
    for name, weight in dequantised(full).state_dict().items():
        if name.endswith("_proj.weight"):
            assert torch.equal(weight, weights[name]), name


@torch.no_grad()
def test_a_dequantised_nf4_base_is_the_quantised_one(base: Base) -> None:
    model = base.load_model(dtype=torch.float32, quantization="nf4")
    live = model(IDS).logits
    model = dequantised(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not quantised(model)
    assert float((model(IDS).logits - live).abs().max()) < 1e-5
    assert not hasattr(model.config, "quantization_config")


@torch.no_grad()
def test_an_evaluation_pass_leaves_the_codes_alone(llama: Base) -> None:
    """On some CPUs bitsandbytes repacks them then, and gives no gradient any more."""
    adapted = attached(llama, "nf4")
    before = {name: layer.weight.data.clone() for name, layer in quantised(adapted.base).items()}
    adapted.hidden(IDS, MASK)
    assert all(
        torch.equal(layer.weight.data, before[name])
        for name, layer in quantised(adapted.base).items()
    )
    with torch.enable_grad():
        adapted.hidden(IDS, MASK).square().sum().backward()
    lora = [p.grad for name, p in adapted.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in lora)


@pytest.mark.parametrize("method", METHODS)
def test_one_step_trains_what_is_attached_and_nothing_else(
    base: Base, method: Quantization
) -> None:
    adapted = attached(base, method)
    assert freeze_report(adapted).trainable["lora"] > 0
    assert freeze_report(adapted).frozen == sum(
        p.numel() for p in base.load_model(dtype=torch.float32).parameters()
    )
    frozen = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    trained = {name: p.clone() for name, p in adapted.named_parameters() if p.requires_grad}
    assert adapted.rows
    ids = (5, 6, int(adapted.rows.ids[0]), 7)
    examples = [Example((*ids, n), 2, n % 4, (1.0, 1.0, 1.0)) for n in range(8)]
    given = TrainSettings(epochs=1, batch_tokens=400, autocast="off", warmup=0.0, lr=1e-2)
    result = train_sft(adapted, SupervisedData(examples), given, LoopSettings(pad_id=1, seed=0))
    assert len(result.history) == 1
    after = dict(adapted.named_parameters())
    assert all(torch.equal(after[name], before) for name, before in frozen.items())
    moved = {name for name, before in trained.items() if not torch.equal(after[name], before)}
    for part in ("lora_B", "gates.", "head.", "rows."):
        assert any(part in name for name in moved), part


@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_folds_onto_the_dequantised_base(
    base: Base, method: Quantization, tmp_path: Path
) -> None:
    adapted = attached(base, method)
    open_up(adapted)
    facts = {"spec": base.spec, "fingerprint": base.fingerprint}
    card = AdapterCard(facts, settings(method).model_dump(mode="json"), 1.0, {}, "session")
    with writing(tmp_path / "adapter", kind="adapter", fingerprint="f") as staging:
        save_adapter(staging, adapted, card)
    model = base.load_model(dtype=torch.float32, quantization=method, attention="eager")
    tags = add_tags(base.load_tokenizer(), model)
    again = load_adapter(tmp_path / "adapter", model, card, tags=tags)
    with torch.no_grad():
        assert torch.equal(again.base(IDS).logits, adapted.base(IDS).logits)
    with writing(tmp_path / "model", kind="model", fingerprint="f") as staging:
        certificate = write_model(
            prepare(tmp_path / "adapter"), staging, ExportSettings(max_logit_difference=1e-3)
        )
    print(f"{base.model_type} {method}: max |Δlogit| {certificate.max_abs_logit_difference:.1e}")
    assert certificate.max_abs_logit_difference <= 1e-3
    assert certificate.top1_agreement == 1.0
    plain: Any = ModelFolder(tmp_path / "model").load_model(dtype=torch.float32)
    assert not quantised(plain)
    assert not hasattr(plain.config, "quantization_config")
    text = (tmp_path / "model" / "metadata.json").read_text()
    assert f'"{"quantised base" if method == "nf4" else "dequantised base"}"' in text
    with torch.no_grad():
        difference = float((plain(IDS).logits - adapted.base(IDS).logits).abs().max())
    assert difference <= 1e-3 if method == "nf4" else difference < 1.0


@pytest.mark.parametrize("method", METHODS)
def test_a_base_whose_table_must_grow_folds_too(
    save_base: Callable[..., Path], method: Quantization
) -> None:
    base = resolve_base(str(save_base("llama", vocab_size=262, tie_word_embeddings=True, **WIDE)))
    adapted = attached(base, method)
    assert adapted.base.get_output_embeddings().weight.shape[0] == 261 + 10
    assert adapted.base.get_output_embeddings().weight is adapted.base.get_input_embeddings().weight


def gradients(
    adapted: Adapted, *, role: str, from_trunk: bool, tagged: bool
) -> dict[str, torch.Tensor]:
    ids = IDS.clone()
    assert adapted.rows
    if tagged:
        ids[:, 3] = int(adapted.rows.ids[0])
    adapted.zero_grad(set_to_none=True)
    adapted.train_only("reward" if role == "reward" else "default")
    with adapted.acting_as(role):  # pyright: ignore[reportArgumentType]
        trunk = adapted.trunk(ids, MASK, layer=adapted.lowest_layer()) if from_trunk else None
        hidden = adapted.hidden(ids, MASK, trunk=trunk)
    loss = (
        adapted.logits(hidden).float().logsumexp(-1).sum()
    )  # the backward pass comes when the role is over
    loss.backward()
    return {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}


def with_roles(base: Base, quantization: Quantization) -> Adapted:
    adapted = attached(base, quantization)
    open_up(adapted)
    adapted.add_reference()
    adapted.add_reward(LoraSettings(rank=2, layers=(0.75, 1.0)))
    for name, parameter in adapted.named_parameters():
        if ".reward." in name:
            parameter.data.normal_(std=0.1)
    return adapted.eval()


CASES = [
    ("policy", False, True),
    ("policy", False, False),
    ("policy", True, False),
    ("reward", False, False),
    ("reward", True, False),
]


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_the_codes_is_known_beforehand(llama: Base, method: Any) -> None:
    for layer in quantised(llama.load_model(dtype=torch.float32, quantization=method)).values():
        held = layer.weight.numel() * layer.weight.element_size()
        if method == "nf4":
            state = layer.weight.quant_state
            held += (
                state.absmax.numel() * state.absmax.element_size() + state.state2.absmax.numel() * 4
            )
        else:
            held += (layer.weight.SCB if layer.state.SCB is None else layer.state.SCB).numel() * 4
        assert held == quantised_bytes(layer.out_features, layer.in_features, method)


def test_a_missing_package_is_told_before_weights_are_loaded(
    llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis.model.quantize.PACKAGE", "no_such_package_here")
    with pytest.raises(MissingPackageError, match=r"model.quantization: nf4 needs .* pip install"):
        check_attachable(llama, settings("nf4"))
    check_attachable(llama, settings("none"))


def test_a_base_that_is_quantised_already_is_told(llama: Base, tmp_path: Path) -> None:
    llama.load_model(dtype=torch.float32, quantization="nf4").save_pretrained(tmp_path)
    llama.load_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"quantised already, found quant_method 'bitsandbytes'; give"
    ):
        check_attachable(resolve_base(str(tmp_path)), settings("none"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"quantization": "nf5"}, r"model.quantization: .*'nf4'.* got 'nf5'"),
        ({"offload": True}, "offload needs gradient_checkpointing: true"),
        (
            {"offload": True, "gradient_checkpointing": True, "quantization": "int8"},
            "offload works with .* got int8",
        ),
    ],
)
def test_settings_that_cannot_work_are_told(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"model": model}, where="test")


def test_tiny_models_stay_plain() -> None:
    assert not quantised(tiny_model())
