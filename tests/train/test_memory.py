"""The plan against what really is allocated."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.config import Config, load_config, parse_config
from aegis.errors import ModelError
from aegis.model.adapted import Adapted, attach
from aegis.model.base import Base, resolve_base
from aegis.model.grad_checkpoint import checkpoint_layers
from aegis.train.loop import Objective
from aegis.train.memory import objectives
from aegis.train.memory.plan import Device, Plan, plan
from aegis.train.memory.rehearsal import Allocations, peak_bytes_of_step
from aegis.train.memory.stand_ins import Roles, meta_adapted, prepared

EXAMPLES = Path(__file__).parents[2] / "examples"
GIB = 2**30
SMALL: dict[str, Any] = {
    "model": {"lora": {"rank": 4, "alpha": 8}},
    "train": {
        "batch_tokens": 256,
        "max_length": 64,
        "reward": {"pairs": 10},
        "ppo": {"batch": 4},
        "group": {"prompts": 2, "group": 2},
        "autocast": "off",
    },
}


def small(**model: Any) -> Config:
    raw = {**SMALL, "model": {**SMALL["model"], **model}}
    return parse_config(raw, where="test")


def device(gib: float, kind: Any = "cpu") -> Device:
    return Device("test", kind, int(gib * GIB), bfloat16=kind == "cuda")


@pytest.fixture(scope="module")
def base(save_base: Callable[..., Path]) -> Base:
    return resolve_base(str(save_base("llama", hidden_size=64, intermediate_size=128)))


def phi(folder: Path) -> Base:
    """Phi-3.5-mini's shape; its weights are not needed."""
    from transformers import AutoConfig

    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 4096,
    }
    AutoConfig.for_model(
        "phi3",
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32064,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_parameters={**rope, "long_factor": [1.0] * 48, "short_factor": [1.0] * 48},
    ).save_pretrained(folder)
    return Base(
        folder,
        "microsoft/Phi-3.5-mini-instruct",
        fingerprint="",
        model_type="phi3",
        hidden_size=3072,
    )


def part(found: Plan, step: str, name: str) -> int:
    parts = next(s for s in found.steps if s.name == step).parts
    return next(size for key, size in parts.items() if key.startswith(name))


def objective(algorithm: str, adapted: Adapted, config: Config) -> Objective[Any]:
    """The real objective of a training, four rows of 64 tokens."""
    train = config.train
    if algorithm == "sft":
        return objectives.sft_objective(adapted, train, 4, 64)
    if algorithm == "reward":
        return objectives.reward_objective(adapted, train.reward, 4, 64)
    if algorithm == "dpo":
        return objectives.dpo_objective(adapted, train.dpo, 4, 64)
    return objectives.policy_objective(adapted, train, prompt=24, length=64)


ALGORITHMS = ("sft", "reward", "ppo", "dpo", "grpo", "rloo")
OTHERS = [(algorithm, other) for algorithm in ("sft", "ppo") for other in ("phi3", "qwen2")]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("algorithm", "architecture"), [*((name, "llama") for name in ALGORITHMS), *OTHERS]
)
def test_a_rehearsed_step_allocates_what_the_real_one_does(
    save_base: Callable[..., Path], algorithm: str, architecture: str, checkpointing: bool
) -> None:
    base = resolve_base(str(save_base(architecture, hidden_size=64, intermediate_size=128)))
    config = small(gradient_checkpointing=checkpointing)
    if algorithm not in ("sft", "reward"):
        train = config.train.model_copy(update={"algorithm": algorithm})
        config = config.model_copy(update={"train": train})
    roles = Roles(algorithm, None if algorithm in ("sft", "dpo") else config.train.reward.lora)
    real = base.load_model(dtype=torch.float32, attention="eager")
    adapted = prepared(attach(real, config.model), roles)
    if checkpointing:
        checkpoint_layers(adapted)
    training = objective(algorithm, adapted, config)
    with Allocations(adapted) as seen:
        training.prepare(0, lambda: None)
        for batch in training.batches(0):
            training.loss(batch, 0).total.backward()
    empty = meta_adapted(
        base.read_config(), config.model, roles, spec="test", dtype=torch.float32, fused=False
    )
    rehearsed = objective(algorithm, empty, config)
    peak = peak_bytes_of_step(empty, rehearsed)
    assert peak == pytest.approx(seen.peak, rel=0.1)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_weights_are_counted_to_the_byte(base: Base, quantization: Any) -> None:
    if quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes; run: pip install bitsandbytes")
    config = small(quantization=quantization)
    model: Any = base.load_model(dtype=torch.float32, quantization=quantization)
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    for layer in model.modules():
        if type(layer).__name__ == "Linear4bit":
            state = layer.weight.quant_state
            whole += state.absmax.numel() + 4 * state.state2.absmax.numel()
        elif type(layer).__name__ == "Linear8bitLt":
            whole += 4 * layer.weight.SCB.numel()
    found = plan(config, base, device=device(64))
    assert part(found, "sft", "base weights") == whole
    adapted = attach(model, config.model)
    lora = sum(
        p.numel() * p.element_size() for name, p in adapted.named_parameters() if ".lora_" in name
    )
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad) + 2 * 10 * 64
    assert part(found, "sft", "LoRA") == lora
    assert part(found, "sft", "gradients") == 4 * trainable
    assert part(found, "sft", "optimizer moments") == 8 * trainable


def test_settings_move_the_plan_the_right_way(base: Base) -> None:
    whole = {step.name: step.total for step in plan(small(), base, device=device(64)).steps}
    assert list(whole) == ["sft", "reward", "ppo, sampling", "ppo, update"]
    for change in (
        {"gradient_checkpointing": True},
        {"lora": {"rank": 2, "alpha": 8}},
        {"quantization": "nf4"},
    ):
        other = plan(small(**change), base, device=device(64))
        assert other.steps[0].total < whole["sft"], change
    less = parse_config({**SMALL, "train": {**SMALL["train"], "batch_tokens": 64}}, where="test")
    assert plan(less, base, device=device(64)).steps[0].total < whole["sft"]


@pytest.mark.parametrize(
    ("algorithm", "steps"),
    [
        ("sft", ["sft"]),
        ("dpo", ["sft", "dpo"]),
        ("grpo", ["sft", "reward", "grpo, sampling", "grpo, update"]),
    ],
)
def test_every_algorithm_has_its_steps(base: Base, algorithm: str, steps: list[str]) -> None:
    config = parse_config(
        {**SMALL, "train": {**SMALL["train"], "algorithm": algorithm}}, where="test"
    )
    assert [step.name for step in plan(config, base, device=device(64)).steps] == steps


def test_what_does_not_fit_gets_remedies_in_order_of_effect(base: Base) -> None:
    config = small()
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"algorithm": "sft"})}
    )
    needed = plan(config, base, device=device(64)).worst.total
    found = plan(config, base, device=device((needed - 1) / GIB))
    assert not found.fits
    saved = [remedy.saves for remedy in found.remedies]
    assert saved == sorted(saved, reverse=True)
    assert min(saved) > 0
    assert {"model.gradient_checkpointing", "train.batch_tokens"} <= {
        r.setting for r in found.remedies
    }
    assert "does not fit test" in found.advice()[0]
    assert any(line.startswith("set train.batch_tokens: 128 (saves") for line in found.advice())
    shown = found.to_json()
    assert shown["fits"] is False
    assert shown["peak_bytes"] == sum(
        next(s for s in shown["steps"] if s["bytes"] == needed)["parts"].values()
    )
    assert found.rows()[-1][0] == "free on test"
    hopeless = plan(config, base, device=device(0.01))
    assert hopeless.advice()[-1].startswith("all of them together are not enough")


def test_remedies_can_be_enough_together(base: Base) -> None:
    known: dict[Any, Any] = {}

    def at(bytes_: float) -> Plan:
        return plan(small(), base, device=device(bytes_ / GIB), known=known)

    least, most = 0.0, float(at(64 * GIB).worst.total)
    for _ in range(6):  # nearly the most memory for which no single remedy is enough
        middle = (least + most) / 2
        found = at(middle)
        enough = found.fits or any(remedy.enough for remedy in found.remedies)
        least, most = (least, middle) if enough else (middle, most)
    found = at(least)
    assert len(found.together) > 1
    assert "together enough: " in found.advice()[-1]


def test_remedies_that_contradict_each_other_are_not_taken_together(base: Base) -> None:
    """Half of a batch of 4 cannot be cut into twice 2 minibatches."""
    found = plan(small(), base, device=device(0.01))
    assert {"train.ppo.batch", "train.ppo.minibatches"} <= {
        remedy.setting for remedy in found.remedies
    }
    assert not found.together


def test_a_model_whose_code_looks_at_values_is_told(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looks(*_: Any, **__: Any) -> int:
        return int(torch.zeros((), device="meta"))

    monkeypatch.setattr(objectives, "sft_peak", looks)
    with pytest.raises(
        ModelError, match=r"no plan can be made for model_type 'llama', whose code looks at values"
    ):
        plan(small(), base, device=device(64))


@pytest.mark.slow
def test_the_example_for_12_gb_fits_12_gb(tmp_path: Path) -> None:
    card = device(11.6, "cuda")
    found = plan(load_config(EXAMPLES / "rtx3060.yaml"), phi(tmp_path), device=card)
    assert found.fits, found.advice()
    full = ["model.quantization=none", "model.gradient_checkpointing=false", "train.algorithm=sft"]
    worse = plan(load_config(EXAMPLES / "rtx3060.yaml", full), phi(tmp_path), device=card)
    assert not worse.fits
    saved = {remedy.setting: remedy.saves for remedy in worse.remedies}
    assert saved["model.quantization"] > 4 * GIB
    assert saved["model.gradient_checkpointing"] > 0
    assert plan(load_config(EXAMPLES / "h100.yaml"), phi(tmp_path), device=device(79, "cuda")).fits
