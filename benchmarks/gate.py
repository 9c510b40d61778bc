"""Claim: SO(8) gates cost little. Time of a training step, gates + LoRA against LoRA alone and
against PEFT's OFT.

All arms train the embedded model on the same random batch, in one process, one step of each in
turn, so that drift of the machine meets all alike. Printed: the ratio of medians, with the interval
of a bootstrap over rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from peft import OFTConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from aegis.config import GateSettings, ModelSettings
from aegis.model.adapted import Adapted, attach, gate_sites, lora_config
from aegis.model.base import ModelFolder, resolve_base
from aegis.model.device import autocast, pick_device

LIMITS = {
    "gates + LoRA / LoRA": 1.10,
    "gates + LoRA / OFT on LoRA's targets": 1.00,
    "gates / OFT on the gates' sites": 1.00,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    folder = resolve_base(options.base).folder
    arms = {
        name: step_of(folder, name, options)
        for name in ("lora", "gates_lora", "oft_all", "gates", "oft_sites")
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(options.rounds + 2):
        for name, step in arms.items():
            begun = time.perf_counter()
            step()
            if round_number >= 2:  # the first two warm caches up
                seconds[name].append(time.perf_counter() - begun)
    ratios = {
        "gates + LoRA / LoRA": ratio(seconds["gates_lora"], seconds["lora"]),
        "gates + LoRA / OFT on LoRA's targets": ratio(seconds["gates_lora"], seconds["oft_all"]),
        "gates / OFT on the gates' sites": ratio(seconds["gates"], seconds["oft_sites"]),
    }
    if options.json:
        print(json.dumps(ratios, indent=2))
        return
    for name, (value, low, high) in ratios.items():
        verdict = "ok" if value <= LIMITS[name] else "OVER"
        print(
            f"{name:40} {value:.3f}  [{low:.3f}, {high:.3f}]  limit {LIMITS[name]:.2f}  {verdict}"
        )
    sys.exit(any(value > LIMITS[name] for name, (value, _, _) in ratios.items()))


def step_of(folder: Any, arm: str, options: argparse.Namespace) -> Callable[[], None]:
    """Return an arm's training step: forward, loss on every token, backward, AdamW."""
    device = pick_device()
    model: Any = ModelFolder(folder).load_model(
        dtype=torch.float32, attention="eager" if device.type == "cpu" else None
    )
    settings = ModelSettings()
    sites = list(gate_sites(model, GateSettings(lm_head=False)))
    if arm.startswith("oft"):
        targets = lora_config(model, settings.lora).target_modules if arm == "oft_all" else sites
        wrapped: Any = get_peft_model(
            model, OFTConfig(oft_block_size=8, target_modules=targets, task_type="CAUSAL_LM")
        )
    else:
        chosen = GateSettings(layers=(0, 0), lm_head=False) if arm == "lora" else settings.gates
        if arm == "gates":
            chosen = GateSettings(lm_head=False)
        wrapped = attach(model, ModelSettings(gates=chosen))
        if arm == "gates":
            unwrap_lora(wrapped)
    wrapped = wrapped.to(device).train()
    trainable = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
    ids = torch.randint(10, model.config.vocab_size, (options.batch, options.length), device=device)
    core = wrapped.base if isinstance(wrapped, Adapted) else wrapped

    def step() -> None:
        with autocast("auto", device):
            loss = core(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def unwrap_lora(adapted: Adapted) -> None:
    """Put plain layers in place of the wrapped ones: OFT alone has no LoRA either."""
    for name, layer in list(adapted.base.named_modules()):
        if not isinstance(layer, LoraLayer):
            continue
        plain, parent = layer.get_base_layer(), adapted.base.get_submodule(name.rpartition(".")[0])
        for hook in cast(Any, layer)._forward_pre_hooks.values():  # a gate at this site
            plain.register_forward_pre_hook(hook)
        setattr(parent, name.rpartition(".")[2], plain)


def ratio(
    one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray
) -> tuple[float, float, float]:
    """Return the ratio of medians and its 95 % bootstrap interval over rounds."""
    pairs = np.array([one, other])
    rng = np.random.default_rng(0)
    draws = rng.integers(0, pairs.shape[1], (2000, pairs.shape[1]))
    samples = np.median(pairs[0][draws], axis=1) / np.median(pairs[1][draws], axis=1)
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(np.median(pairs[0]) / np.median(pairs[1])), float(low), float(high)


if __name__ == "__main__":
    main()
