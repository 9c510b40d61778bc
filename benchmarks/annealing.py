"""Claim: annealing the gates changes what is learned. The same training with α annealed and with α
at its end from the start.

Both arms of a seed start from the same weights and take the same batches in the same order; only α
differs. Printed: the paired difference, annealed minus constant, with Student's interval over seeds
(a bootstrap of a handful of seeds would be too narrow). It may show nothing; the last line says
which it is. Gates start as the identity, so that both arms start equal.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import ttest_1samp

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' tiny model

from aegis.config import AnnealSettings, ModelSettings, TrainSettings
from aegis.data.seed import seed_records
from aegis.data.split import split_records
from aegis.model.adapted import attach
from aegis.model.base import ModelFolder, resolve_base
from aegis.model.device import pick_device, quick_attention
from aegis.model.tags import add_tags
from aegis.storage.files import to_json
from aegis.train.examples import EncodingSettings, Example, encode_all, epoch_batches
from aegis.train.services import LoopSettings
from aegis.train.sft import SupervisedData, SupervisedResult, train_sft
from benchmarks.annealing_comparison import compare, draw_comparison

ARMS = {
    "annealed": AnnealSettings(),
    "constant": AnnealSettings(start=AnnealSettings().end, warmup=0.0, annealing=0.0),
}


@dataclass(frozen=True)
class Outcome:
    """What one training came to: training loss over its last fifth, and loss and accuracy of
    decisions on validation."""

    training_loss: float
    gradient_norm: float
    validation_loss: float
    validation_accuracy: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--base",
        default="tiny",
        help="tiny (random, seconds), embedded, or what `base:` of a config takes",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--records", type=int, default=240, help="at most this many to train on")
    parser.add_argument("--batch-tokens", type=int, default=768)
    parser.add_argument("--mode", choices=("geodesic", "additive"), default="geodesic")
    parser.add_argument(
        "--out", type=Path, help="folder for the pictures and summaries of each seed"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = {name: [] for name in ARMS}
    for seed in range(options.seeds):
        trained = {name: train(options, anneal, seed=seed) for name, anneal in ARMS.items()}
        for name, result in trained.items():
            outcomes[name].append(outcome(result))
        annealed, constant = (trained[name].history for name in ("annealed", "constant"))
        print(f"seed {seed}: {compare(annealed, constant).reading()}", file=sys.stderr)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            draw_comparison(options.out / f"seed_{seed}.png", annealed, constant)
            (options.out / f"seed_{seed}.json").write_text(
                to_json(compare(annealed, constant).to_json()), encoding="utf-8"
            )
    report(options, outcomes)


def train(options: argparse.Namespace, anneal: AnnealSettings, *, seed: int) -> SupervisedResult:
    """Train one arm of one seed from the base's own weights."""
    model, tokenizer = load(options)
    tags = add_tags(tokenizer, model)
    settings = ModelSettings.model_validate({"gates": {"mode": options.mode}})
    examples, held_out = data(tokenizer, options, seed=seed)
    torch.manual_seed(seed)
    adapted = attach(model, settings, tags=tags).to(pick_device())
    batches = len(epoch_batches(examples, batch_tokens=options.batch_tokens, seed=seed, epoch=0))
    training = TrainSettings(
        epochs=options.steps / batches, batch_tokens=options.batch_tokens, anneal=anneal
    )
    loop = LoopSettings(pad_id=tokenizer.pad_token_id, seed=seed)
    return train_sft(adapted, SupervisedData(examples, held_out), training, loop)


def load(options: argparse.Namespace) -> tuple[Any, Any]:
    """Load the base and its tokenizer."""
    if options.base == "tiny":
        from tests.conftest import byte_tokenizer, tiny_model

        return tiny_model(), byte_tokenizer()
    folder = resolve_base(options.base).folder
    model = ModelFolder(folder).load_model(
        dtype=torch.float32, attention=quick_attention(pick_device())
    )
    return model, ModelFolder(folder).load_tokenizer()


def data(
    tokenizer: Any, options: argparse.Namespace, *, seed: int
) -> tuple[list[Example], list[Example]]:
    """Return the seed records, split by the run's own rule."""
    splits = split_records(seed_records(), validation=0.15, test=0.0, seed=seed)
    chosen = random.Random(seed).sample(splits["train"], min(options.records, len(splits["train"])))
    train = TrainSettings()
    settings = EncodingSettings(None, train.max_length, seed, train.loss.sections, train.loss.final)
    validation, _ = encode_all(
        tokenizer, splits["validation"], [], replace(settings, thinking_records=0)
    )
    return encode_all(tokenizer, chosen, [], settings)[0], validation


def outcome(trained: SupervisedResult) -> Outcome:
    last = trained.history[-max(1, len(trained.history) // 5) :]
    check = trained.validation[-1]
    return Outcome(
        training_loss=float(np.mean([log.loss for log in last])),
        gradient_norm=float(np.mean([log.gradient_norm for log in last])),
        validation_loss=check["validation_loss"],
        validation_accuracy=check["validation_accuracy"],
    )


def report(options: argparse.Namespace, outcomes: dict[str, list[Outcome]]) -> None:
    """Print the paired differences, and in words whether there are any."""
    rows = {}
    for name in asdict(outcomes["annealed"][0]):
        annealed, constant = (
            np.array([getattr(one, name) for one in outcomes[arm]])
            for arm in ("annealed", "constant")
        )
        rows[name] = {
            "annealed": float(annealed.mean()),
            "constant": float(constant.mean()),
            **difference(annealed - constant),
        }
    clear = [
        name
        for name, row in rows.items()
        if row["low"] is not None and not row["low"] <= 0 <= row["high"]
    ]
    verdict = (
        f"a difference can be seen in: {', '.join(clear)}" if clear else "no difference can be seen"
    )
    if options.seeds < 2:
        verdict = "one seed shows nothing either way; give --seeds 2 or more"
    elif clear:
        verdict += (
            " (four measures are looked at, each at 95 %: up to one in five such tables shows one "
            "by chance)"
        )
    if options.json:
        facts = {
            "base": options.base,
            "mode": options.mode,
            "seeds": options.seeds,
            "steps": options.steps,
        }
        print(json.dumps({**facts, "measures": rows, "verdict": verdict}, indent=2))
        return
    print(
        f"base {options.base}, {options.mode} gates, {options.seeds} seeds of {options.steps} "
        "steps; 95 % intervals"
    )
    for name, row in rows.items():
        interval = "" if row["low"] is None else f"  [{row['low']:+.4f}, {row['high']:+.4f}]"
        print(
            f"{name:20} {row['annealed']:.4f} − {row['constant']:.4f} = "
            f"{row['difference']:+.4f}{interval}"
        )
    print(verdict)


def difference(paired: np.ndarray) -> dict[str, float | None]:
    """Return the mean of (seeds,) paired differences and Student's 95 % interval, if any."""
    mean = float(paired.mean())
    if len(paired) < 2:
        return {"difference": mean, "low": None, "high": None}
    if math.isclose(float(paired.std()), 0.0, abs_tol=1e-15):
        return {"difference": mean, "low": mean, "high": mean}
    found = ttest_1samp(paired, 0.0).confidence_interval(0.95)
    return {"difference": mean, "low": float(found.low), "high": float(found.high)}


if __name__ == "__main__":
    main()
