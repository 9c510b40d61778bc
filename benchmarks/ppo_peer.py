"""The peer's process of `ppo_update.py`: TRL's PPOTrainer, in an environment of its own that has no
AEGIS.

python ppo_peer.py SPEC.json FOUND.json
"""

from __future__ import annotations

import importlib
import itertools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, inject_adapter_in_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)


def main() -> None:
    spec, target = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    ppo: Any = importlib.import_module("trl.experimental.ppo")
    inner: Any = importlib.import_module("trl.experimental.ppo.ppo_trainer")
    sampling = Stopwatch(inner.batch_generation)
    inner.batch_generation = sampling
    clock = Clock()
    trainer = make_trainer(ppo, spec, clock)
    clock.tick()
    trainer.train()
    lengths = {row["input_ids"].shape[-1] for row in trainer.dataloader}
    found = {
        "update_seconds": clock.seconds(),
        "sample_seconds": sampling.seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "prompt_lengths": sorted(lengths),
        "response_lengths": sampling.widths,
        "optimizer_steps": optimizer_steps(trainer.optimizer),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    target.write_text(json.dumps(found), encoding="utf-8")


def make_trainer(ppo: Any, spec: dict[str, Any], clock: Clock) -> Any:
    datasets: Any = importlib.import_module("datasets")
    tokenizer: Any = AutoTokenizer.from_pretrained(spec["base"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    loading: dict[str, Any] = {
        "dtype": getattr(torch, spec["dtype"]),
        "attn_implementation": spec["attention"],
    }
    scoring = loading | {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
    policy = AutoModelForCausalLM.from_pretrained(spec["base"], **loading)
    reference = (
        AutoModelForCausalLM.from_pretrained(spec["base"], **loading)
        if spec["reference"] == "copy"
        else None
    )
    reward = AutoModelForSequenceClassification.from_pretrained(spec["base"], **scoring)
    value = AutoModelForSequenceClassification.from_pretrained(spec["base"], **scoring)
    lora = LoraConfig(
        r=spec["rank"], lora_alpha=spec["alpha"], lora_dropout=0.0, target_modules=spec["targets"]
    )
    if spec["value"] == "lora":
        train_only_lora(value, lora)
    arguments = ppo.PPOConfig(
        output_dir=spec["folder"],
        per_device_train_batch_size=spec["batch"],
        # With minibatches' accumulation Accelerate would take one step an epoch only.
        gradient_accumulation_steps=1,
        num_mini_batches=spec["minibatches"],
        num_ppo_epochs=spec["epochs"],
        total_episodes=spec["batch"] * spec["updates"],
        local_rollout_forward_batch_size=spec["batch"],
        response_length=spec["length"],
        temperature=1.0,
        learning_rate=spec["lr"],
        kl_coef=spec["kl"],
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,  # the weights are in the asked dtype already; no autocast on either side
        use_cpu=spec["device"] == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=spec["seed"],
    )
    return ppo.PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=datasets.Dataset.from_dict({"input_ids": spec["prompts"]}),
        eval_dataset=datasets.Dataset.from_dict({"input_ids": spec["prompts"][:1]}),
        peft_config=LoraConfig(
            r=spec["rank"],
            lora_alpha=spec["alpha"],
            lora_dropout=0.0,
            target_modules=spec["targets"],
            task_type="CAUSAL_LM",
        ),
        callbacks=[clock],
    )


def train_only_lora(value: Any, lora: LoraConfig) -> None:
    """Let only LoRA and the score train, in float32 as the policy's LoRA does."""
    inject_adapter_in_model(lora, value)
    for name, parameter in value.named_parameters():
        parameter.requires_grad_("lora_" in name or "score" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()


class Clock(TrainerCallback):
    """When each update ended."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def tick(self) -> None:
        self.ticks.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.tick()

    def seconds(self) -> list[float]:
        return [end - begin for begin, end in itertools.pairwise(self.ticks)]


class Stopwatch:
    """TRL's sampling, timed."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.seconds, self.widths = inner, list[float](), list[int]()

    def __call__(self, model: Any, queries: Any, *rest: Any) -> Any:
        begun = time.perf_counter()
        found = self.inner(model, queries, *rest)
        self.seconds.append(time.perf_counter() - begun)
        self.widths.append(found[0].shape[1] - queries.shape[1])
        return found


def optimizer_steps(optimizer: Any) -> int:
    """Return how many steps Adam has really taken."""
    states = getattr(optimizer, "optimizer", optimizer).state.values()
    return max(int(state["step"]) for state in states)


if __name__ == "__main__":
    main()
