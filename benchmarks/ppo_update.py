"""Whole PPO updates, AEGIS against TRL 1.12.0, the last release that has a PPO trainer
(`trl.experimental.ppo`).

An update is: responses of a fixed length to a batch of prompts, scoring, and optimizer steps on
minibatches. Each side is a process of its own; its first update is not counted. Equal on both
sides: base weights and their dtype, the prompts and their length, the responses' length and that
they are sampled by `generate` with a cache, batch, minibatches, epochs and optimizer steps, rank
and targets of the policy's LoRA, attention, threads, versions of torch, transformers and PEFT;
AdamW; no gradient checkpointing, no autocast. Not equal, for that is the claim:

- AEGIS holds one base. Its policy is LoRA and SO(8) gates, its reference a frozen copy of those
two, its reward model a
  LoRA on the upper layers, its value a head that reads the policy's states. It holds no decision
  loss here, as the task has no decisions.
- TRL, `its own way`: the policy's LoRA is switched off for the reference, as TRL's example script
does with LoRA; the
  reward model and the value model are sequence classifiers of their own from the same base, and the
  value model trains as a whole. `four models`: also the reference is a model of its own. `lean`:
  its own way, but the value model is frozen and trains by LoRA of the policy's rank and targets,
  which TRL has no setting for and which we do to it from outside.

Time: seconds from the end of an update to the end of the next. Memory: the peak resident set of the
whole process (getrusage's ru_maxrss), interpreter, libraries, loading and all, nothing taken off.

The peer's environment is made at the first call, in AEGIS's cache folder; that takes minutes and is
not counted.

    python ppo_update.py SPEC.json FOUND.json        is AEGIS's process
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from claims import Claim, median
from gate import ratio
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from aegis.config import Config
from aegis.data.seed import seed_records
from aegis.engine.response_sampler import SampledResponse as Response
from aegis.engine.response_sampler import hold_gates
from aegis.model.adapted import Adapted, attach, lora_config
from aegis.model.base import ModelFolder, resolve_base
from aegis.model.device import fast_dtype, pick_device, quick_attention
from aegis.model.embedded import cache_folder
from aegis.model.heads import ScalarHead
from aegis.model.prompt import PromptEncoder
from aegis.runs.events import Event, Metrics, Reporter
from aegis.runs.reporter import bar
from aegis.train.loop import TrainLoop
from aegis.train.ppo import PpoObjective
from aegis.train.reward import RewardModel
from aegis.train.rollout import Limiter, RolloutCollector
from aegis.train.services import LoopSettings, TrainServices

TRL = "1.12.0"
PEERS = {
    "its own way": {"reference": "adapter", "value": "whole"},
    "four models": {"reference": "copy", "value": "whole"},
    "lean": {"reference": "adapter", "value": "lora"},
}
TIME_LIMIT, MEMORY_LIMIT = 0.8, 0.6


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--updates", type=int, default=3, help="b: measured updates a side")
    parser.add_argument("--prompt-length", type=int, default=48, help="b: tokens")
    parser.add_argument("--response-length", type=int, default=96, help="b: tokens")
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=["its own way", "lean"],
        help="b: TRL's arrangements",
    )
    parser.add_argument(
        "--torch-index",
        help="b: index from which the peer's torch is installed, if not the default one",
    )


def measure_updates(
    config: Config,
    options: argparse.Namespace,
    claims: list[Claim],
    lines: list[str],
    details: dict[str, Any],
) -> None:
    python = peer_python(options.torch_index)
    here = Path(__file__)
    with tempfile.TemporaryDirectory(prefix="ppo_") as folder:
        spec = make_spec(config, options, folder)
        with bar("PPO updates, a process each", 1 + len(options.peers)) as advance:
            ours = run([sys.executable, str(here)], spec, Path(folder))
            advance()
            peers = {}
            for name in options.peers:
                peers[name] = run(
                    [str(python), str(here.with_name("ppo_peer.py"))],
                    spec | PEERS[name],
                    Path(folder),
                )
                advance()
    for name, peer in peers.items():
        if (ours["optimizer_steps"], ours["response_lengths"][0]) != (
            peer["optimizer_steps"],
            peer["response_lengths"][0],
        ):
            raise SystemExit(f"AEGIS and TRL ({name}) did not do the same: {ours} against {peer}")
        times = ratio(ours["update_seconds"][1:], peer["update_seconds"][1:])
        claims.append(
            Claim(f"b. time of an update, AEGIS / TRL {name}", times, TIME_LIMIT, options.updates)
        )
        memory = ours["peak_bytes"] / peer["peak_bytes"]
        claims.append(
            Claim(f"b. peak memory, AEGIS / TRL {name}", (memory, memory, memory), MEMORY_LIMIT, 1)
        )
    lines.append(
        f"b. {spec['batch']} prompts of {spec['prompt_length']} tokens, responses of "
        f"{spec['length']}, {spec['minibatches']} minibatches, {spec['epochs']} epoch(s), "
        f"{spec['dtype']}, {spec['threads']} threads; n {options.updates} updates a side after one "
        "to warm up; memory is one process each, peak resident set, nothing taken off"
    )
    lines += [
        side("AEGIS", ours),
        *(side(f"TRL {TRL}, {name}", peer) for name, peer in peers.items()),
    ]
    details["updates"] = {"AEGIS": ours, **{f"TRL, {name}": peer for name, peer in peers.items()}}


def side(name: str, found: dict[str, Any]) -> str:
    whole, sampling = median(found["update_seconds"][1:])[0], median(found["sample_seconds"][1:])[0]
    parts = [
        f"{whole:6.2f} s an update, {sampling:6.2f} s of it sampling",
        f"peak {found['peak_bytes'] / 2**30:.2f} GiB",
        f"{found['trainable']:,} parameters train",
        f"{found['optimizer_steps']} optimizer steps in all",
    ]
    return f"   {name:26} " + "; ".join(parts)


def make_spec(config: Config, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Return what both sides are given."""
    base, device, settings = resolve_base(config.base), pick_device(), config.train.ppo
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.folder))
    targets = lora_config(skeleton, config.model.lora).target_modules
    assert targets is not None
    updates = options.updates + 1
    return {
        "base": str(base.folder),
        "config": config.model_dump(mode="json"),
        "folder": folder,
        "prompts": make_prompts(
            base.folder, config, count=settings.batch * updates, length=options.prompt_length
        ),
        "prompt_length": options.prompt_length,
        "length": options.response_length,
        "updates": updates,
        "batch": settings.batch,
        "minibatches": settings.minibatches,
        "epochs": settings.epochs,
        "lr": settings.lr,
        "kl": settings.kl,
        "rank": config.model.lora.rank,
        "alpha": config.model.lora.alpha,
        "targets": sorted(targets),
        "dtype": str(fast_dtype()).removeprefix("torch."),
        "attention": quick_attention(device),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "seed": config.seed,
    }


def make_prompts(folder: Path, config: Config, *, count: int, length: int) -> list[list[int]]:
    """Return the last `length` tokens of shipped prompts that have so many.

    They repeat from the first where they are few.
    """
    tokenizer = ModelFolder(folder).load_tokenizer()
    encoder = PromptEncoder(tokenizer, config.model.system_prompt)
    rows = (encoder.ids(record.prompt) for record in seed_records())
    cut: list[list[int]] = []
    for row in rows:
        if len(row) >= length:
            cut.append(row[-length:])
        if len(cut) == count:
            return cut
    if not cut:
        raise SystemExit(f"no shipped prompt has {length} tokens; give a smaller --prompt-length")
    return [cut[number % len(cut)] for number in range(count)]


def run(command: list[str], spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one side and read its result."""
    given, target, log = folder / "spec.json", folder / "found.json", folder / "log"
    target.unlink(missing_ok=True)
    given.write_text(json.dumps(spec), encoding="utf-8")
    with open(log, "w", encoding="utf-8") as out:
        done = subprocess.run(
            [*command, str(given), str(target)], stdout=out, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode or not target.exists():
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n"
            f"{log.read_text(encoding='utf-8')[-3000:]}"
        )
    return json.loads(target.read_text(encoding="utf-8"))


def peer_python(torch_index: str | None) -> Path:
    """Return the interpreter of an environment with TRL and our torch and transformers."""
    versions = {
        name: importlib.metadata.version(name).partition("+")[0]
        for name in ("torch", "transformers", "peft")
    }
    name = f"trl-{TRL}-torch-{versions['torch']}-transformers-{versions['transformers']}"
    folder = cache_folder() / "peers" / name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if (folder / "ready").exists():
        return python
    print(f"making {folder}", file=sys.stderr)
    install = [str(python), "-m", "pip", "install", "-q"]
    index = ["--index-url", torch_index] if torch_index else []
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*install, *index, f"torch=={versions['torch']}"],
        [
            *install,
            f"trl=={TRL}",
            f"transformers=={versions['transformers']}",
            f"peft=={versions['peft']}",
            "pandas",
            "rich",
        ],
    ]
    for step in steps:
        if subprocess.run(step, stdout=sys.stderr, check=False).returncode:
            raise SystemExit(f"the peer's environment could not be made: {' '.join(step)}")
    (folder / "ready").touch()
    return python


class Plain:
    """Sampled responses of a fixed length, with nothing to verify: the reward is the reward
    model's."""

    def __init__(
        self, adapted: Adapted, prompts: Sequence[tuple[int, ...]], *, length: int, pad_id: int
    ) -> None:
        self.adapted, self.prompts, self.length = adapted, prompts, length
        self.kinds: Sequence[int] = [0] * len(prompts)
        self.decides = False
        self.limiter: Limiter | None = None
        adapted.base.generation_config.eos_token_id = (
            None  # every response has the whole length, as in TRL without a stop token
        )
        self.generation = GenerationConfig(
            max_new_tokens=length,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=pad_id,
        )
        self.widths: list[int] = []

    def sample(
        self, prompts: Sequence[tuple[int, ...]], on_token: Callable[[], None] = lambda: None
    ) -> list[Response]:
        ids = torch.tensor(prompts, device=self.adapted.device)
        with hold_gates(self.adapted.all_gates()):
            found = self.adapted.base.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=self.generation,
            )
        on_token()
        self.widths.append(found.shape[1] - ids.shape[1])
        yes, part, no = (True,) * self.length, (0,) * self.length, (False,) * self.length
        rows = found[:, ids.shape[1] :].tolist()
        return [
            Response(prompt, tuple(row), yes, part, no, (True,), ())
            for prompt, row in zip(prompts, rows, strict=True)
        ]

    def terms(
        self, indices: Sequence[int], responses: Sequence[Response]
    ) -> list[dict[str, float]]:
        return [{"plain": 0.0} for _ in responses]

    def shaped_rewards(self, index: int, response: Response) -> dict[int, float]:
        return {}


def our_updates(spec: dict[str, Any]) -> dict[str, Any]:
    """Time AEGIS's side."""
    import resource  # not at the top: Windows has none

    config = Config.model_validate_json(json.dumps(spec["config"]))
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    device = pick_device()
    model: Any = ModelFolder(Path(spec["base"])).load_model(
        dtype=getattr(torch, spec["dtype"]), attention=spec["attention"]
    )
    tokenizer = ModelFolder(Path(spec["base"])).load_tokenizer()
    adapted = attach(model, config.model).to(device)
    adapted.set_alpha(config.train.anneal.end)
    adapted.add_reference()
    adapted.add_reward(config.train.reward.lora)
    adapted.train_only("default")
    adapted.to(device)
    reward = RewardModel(ScalarHead(adapted.head.features).to(device), adapted.reward_layer())
    value = ScalarHead(adapted.head.features).to(device)
    prompts = [tuple(row) for row in spec["prompts"]]
    task = Plain(adapted, prompts, length=spec["length"], pad_id=tokenizer.pad_token_id)
    settings = config.train.ppo.model_copy(update={"updates": spec["updates"], "stop_kl": None})
    ticks, logs = [time.perf_counter()], list[dict[str, Any]]()

    def updated(event: Event) -> None:
        if isinstance(event, Metrics):
            ticks.append(time.perf_counter())
            logs.append(dict(event.values))

    pad_id, seed = tokenizer.pad_token_id, spec["seed"]
    loop = LoopSettings(pad_id, seed)
    collector = RolloutCollector(adapted, task, settings, pad_id=pad_id, reward=reward)
    ppo = PpoObjective(collector, value, settings, loop)
    TrainLoop(ppo, loop, TrainServices(Reporter(updated))).run()
    return {
        "update_seconds": [end - begin for begin, end in itertools.pairwise(ticks)],
        "sample_seconds": [log["sample_seconds"] for log in logs],
        "score_seconds": [log["score_seconds"] for log in logs],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "trainable": sum(
            p.numel() for group in ppo.optimizer.param_groups for p in group["params"]
        ),
        "prompt_lengths": sorted({len(row) for row in prompts}),
        "response_lengths": task.widths,
        "optimizer_steps": max(int(state["step"]) for state in ppo.optimizer.state.values()),
    }


if __name__ == "__main__":
    given, target = map(Path, sys.argv[1:])
    target.write_text(
        json.dumps(our_updates(json.loads(given.read_text(encoding="utf-8")))), encoding="utf-8"
    )
