"""Claim: PPO on one frozen base costs little. Scoring against whole passes, an update against TRL,
and what it learns.

a. Scoring. Policy, reference, value and reward of one rollout, with the trunk below the lowest
adapted layer computed once,
   against four whole passes of the same model over the same batch, one for each. Both arms read the
   same log-probabilities from the same hidden states; their results are compared and the largest
   difference is printed. Two settings: the quickstart's LoRA layers, and the defaults. For
   information, also against three whole passes: the value head reads the policy's own hidden
   states, for which nobody needs a pass of its own.
b. Updates. See `ppo_update.py`: whole PPO updates against TRL's PPOTrainer, time and peak memory.
learn. See `ppo_learn.py`: what PPO does to the policy of a finished run. Not part of `all`, for it
takes longer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from claims import Claim, median, report
from gate import ratio
from ppo_learn import add_options as add_learn_options
from ppo_learn import measure_learning
from ppo_update import add_options as add_update_options
from ppo_update import measure_updates
from torch import Tensor, nn

from aegis.config import Config, load_config
from aegis.data.records import Record
from aegis.data.seed import seed_records
from aegis.engine.judge import Judge
from aegis.engine.verdict import CalibratedHead
from aegis.model.adapted import Adapted, attach
from aegis.model.base import resolve_base
from aegis.model.device import fast_dtype, pick_device, quick_attention
from aegis.model.heads import ScalarHead
from aegis.model.prompt import PromptEncoder
from aegis.model.tags import add_tags
from aegis.runs.reporter import bar
from aegis.train.ppo import PpoObjective
from aegis.train.reward import RewardModel
from aegis.train.rollout import Rollout, RolloutCollector, make_rollout
from aegis.train.services import LoopSettings
from aegis.train.task import QuadrupleThinking

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
SETTINGS = {
    "quickstart's layers": (),
    "default layers": ("model.lora.layers=[0.25, 1.0]", "model.gates.layers=[0.25, 0.75]"),
}
SHARED, FOUR, THREE = "shared trunk", "four whole passes", "three whole passes"
LIMIT = 0.65


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("a", "b", "all", "learn"), default="all")
    parser.add_argument("--config", type=Path, default=QUICKSTART)
    parser.add_argument("--rounds", type=int, default=3, help="a: measured rounds a setting")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures there")
    add_update_options(parser)
    add_learn_options(parser)
    options = parser.parse_args()
    claims: list[Claim] = []
    lines: list[str] = []
    details: dict[str, Any] = {}
    if options.part in ("a", "all"):
        for name, overrides in SETTINGS.items():
            measure_scoring(
                name, load_config(options.config, overrides), options.rounds, claims, lines, details
            )
    if options.part in ("b", "all"):
        measure_updates(load_config(options.config), options, claims, lines, details)
    if options.part == "learn":
        measure_learning(load_config(options.config), options, claims, lines, details)
    sys.exit(not report(claims, lines=lines, json_path=options.json, details=details))


def measure_scoring(
    name: str,
    config: Config,
    rounds: int,
    claims: list[Claim],
    lines: list[str],
    details: dict[str, Any],
) -> None:
    ppo, rollout = make_ppo(config)
    arms: dict[str, Callable[[], list[Tensor]]] = {
        SHARED: lambda: shared(ppo, rollout),
        FOUR: lambda: whole_passes(ppo, rollout, own_value_pass=True),
        THREE: lambda: whole_passes(ppo, rollout, own_value_pass=False),
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    found: dict[str, list[Tensor]] = {}
    with bar(f"scoring, {name}", (rounds + 1) * len(arms)) as advance:
        for number in range(rounds + 1):
            for arm in sorted(arms, reverse=number % 2 == 0):
                begun = time.perf_counter()
                found[arm] = arms[arm]()
                if number:  # the first warms caches up
                    seconds[arm].append(time.perf_counter() - begun)
                advance()
    value = ratio(seconds[SHARED], seconds[FOUR])
    claims.append(Claim(f"a. scoring, shared trunk / four passes, {name}", value, LIMIT, rounds))
    against_three = ratio(seconds[SHARED], seconds[THREE])
    apart = max(float((a - b).abs().max()) for a, b in zip(found[SHARED], found[FOUR], strict=True))
    depth, reward = ppo.adapted.depth, ppo.collector.reward
    upper = reward.layer if reward else depth
    shape = " × ".join(map(str, rollout.ids.shape))
    times = ", ".join(f"{arm} {median(seconds[arm])[0]:.2f} s" for arm in arms)
    lines.append(
        f"a. {name}: {times}; n {rounds}; shared / three passes {against_three[0]:.3f}, not judged"
    )
    lines.append(
        f"   {shape} ids, {int(rollout.real.sum())} scored tokens, {ppo.adapted.base.dtype}; "
        f"policy and reference differ from layer {ppo.collector.layer} of {depth}, the reward "
        f"model from {upper}; largest difference of any result {apart:.1e}"
    )
    details[f"scoring, {name}"] = {
        "seconds": seconds,
        "layer": ppo.collector.layer,
        "reward_layer": upper,
        "difference": apart,
    }


def make_ppo(config: Config) -> tuple[PpoObjective, Rollout]:
    """Set PPO up as a run does, its roles made different, with one rollout of its task."""
    base, device, settings = resolve_base(config.base), pick_device(), config.train.ppo
    model: Any = base.load_model(dtype=fast_dtype(), attention=quick_attention(device))
    tokenizer = base.load_tokenizer()
    tags = add_tags(tokenizer, model)
    torch.manual_seed(config.seed)
    adapted = attach(model, config.model, tags=tags).to(device).eval()
    adapted.set_alpha(config.train.anneal.end)
    adapted.add_reference()
    adapted.add_reward(config.train.reward.lora)
    adapted.train_only("default")
    set_apart(adapted.to(device))
    head = ScalarHead(adapted.head.features).to(device)
    value = ScalarHead(adapted.head.features).to(device)
    nn.init.normal_(value.linear.weight, std=0.1)
    nn.init.normal_(head.linear.weight, std=0.1)
    records, prompts = pick_prompts(tokenizer, config)
    judge = Judge(adapted.base, tokenizer, CalibratedHead(adapted.head))
    task = QuadrupleThinking(adapted, judge, records, prompts, settings)
    reward = RewardModel(head, adapted.reward_layer())
    pad_id = tokenizer.pad_token_id
    collector = RolloutCollector(adapted, task, settings, pad_id=pad_id, reward=reward)
    ppo = PpoObjective(collector, value, settings, LoopSettings(pad_id, config.seed))
    with torch.no_grad():
        paths = task.sample(prompts)
        rollout = make_rollout(paths, task, pad_id=tokenizer.pad_token_id, device=device)
    return ppo, rollout


def set_apart(adapted: Adapted) -> None:
    """Give every role something of its own, so that mixing them up would show."""
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.01)


@torch.no_grad()
def shared(ppo: PpoObjective, rollout: Rollout) -> list[Tensor]:
    """Do what PPO does with a new rollout."""
    _, hidden, _, scores = ppo.collector.score(rollout)
    rollout.values = ppo.values(hidden, rollout)
    assert scores is not None
    return [rollout.logprobs, rollout.values, rollout.reference, scores]


@torch.no_grad()
def whole_passes(ppo: PpoObjective, rollout: Rollout, *, own_value_pass: bool) -> list[Tensor]:
    """Compute the same results with every layer run for each role."""
    adapted, ids, mask, weight = (
        ppo.adapted,
        rollout.ids,
        rollout.mask,
        ppo.settings.weights.reward_model,
    )
    reward = ppo.collector.reward
    assert reward is not None
    hidden = adapted.hidden(ids, mask)
    logprobs = ppo.collector.logprobs(hidden, rollout)[0]
    values = ppo.values(adapted.hidden(ids, mask) if own_value_pass else hidden, rollout)
    with adapted.acting_as("reference"):
        reference = ppo.collector.logprobs(adapted.hidden(ids, mask), rollout)[0]
    return [logprobs, values, reference, weight * reward.score(adapted, ids, mask).clamp(-3, 3)]


def pick_prompts(tokenizer: Any, config: Config) -> tuple[list[Record], list[tuple[int, ...]]]:
    """Return as many shipped records as PPO asks at once, evenly, and their ids."""
    count, limit = config.train.ppo.batch, config.train.ppo.prompt_tokens
    encoder = PromptEncoder(tokenizer, config.model.system_prompt)
    rows = [(record, tuple(encoder.ids(record.prompt))) for record in seed_records()[::8]]
    rows = [row for row in rows if len(row[1]) <= limit]
    chosen = rows[:: max(1, len(rows) // count)][:count]
    return [record for record, _ in chosen], [ids for _, ids in chosen]


if __name__ == "__main__":
    main()
