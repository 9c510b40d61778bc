"""The reward model: LoRA and a scalar head on top of the supervised model, by Bradley and Terry's
law on pairs."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional
from transformers import get_cosine_schedule_with_warmup

from aegis.config import DpoSettings, RewardSettings
from aegis.errors import AdapterError, DataError
from aegis.model.adapted import Adapted
from aegis.model.heads import REWARD_HEAD_FILE, ScalarHead, last_real
from aegis.model.prompt import by_length, pad
from aegis.model.trunk import Trunk
from aegis.runs.reporter import bar
from aegis.storage.files import to_json
from aegis.train.loop import Loss, StepLog, fit
from aegis.train.snapshot_policy import SnapshotPolicy
from aegis.train.state import ModuleState, OptimizerState, Part, RandomState, SchedulerState, Values
from aegis.train.tracking import Tracker, step_scalars

CARD = "reward.json"


@dataclass(frozen=True)
class EncodedPair:
    """Both sides as ids, prompt included, and how many steps of severity lie between their
    decisions."""

    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    distance: int


@dataclass
class RewardModel:
    """Scores whole responses, mean 0 and standard deviation 1 on its reference samples.

    Args:
        head: reads the last token's hidden state.
        layer: first decoder layer that the reward model's LoRA changes.
        mean: of the raw scores of the reference samples.
        std: the same.
    """

    head: ScalarHead
    layer: int
    mean: float = 0.0
    std: float = 1.0

    def score(
        self, adapted: Adapted, ids: Tensor, mask: Tensor, *, trunk: Trunk | None = None
    ) -> Tensor:
        """(batch, time) padded on the right → (batch,)."""
        with adapted.acting_as("reward"):
            hidden = adapted.hidden(ids, mask, trunk=trunk)
        return (self.head(last_real(hidden, mask)) - self.mean) / self.std


@dataclass(frozen=True)
class RewardReport:
    """How good a reward model is on pairs that it did not learn from; None where there are too few
    to tell.

    Args:
        pairs: how many.
        accuracy: share in which the chosen side scores higher.
        brier: mean squared distance of σ(difference) from 1; 0.25 for a coin.
        calibration_error: |mean σ(difference) − accuracy|.
        longer_wins: share in which the longer side scores higher; compare with `longer_chosen`.
        longer_chosen: share in which the chosen side is the longer one.
        length_correlation: Spearman's ρ of score and length over all sides.
        reference_mean, reference_std: of the raw scores on the reference samples, by which scores
        are normalised.
    """

    pairs: int
    accuracy: float | None
    brier: float | None
    calibration_error: float | None
    longer_wins: float | None
    longer_chosen: float | None
    length_correlation: float | None
    reference_mean: float
    reference_std: float


def train_reward(
    adapted: Adapted,
    pairs: Sequence[EncodedPair],
    held_out: Sequence[EncodedPair],
    settings: RewardSettings,
    *,
    pad_id: int,
    seed: int,
    clip_norm: float = 1.0,
    checkpoints: SnapshotPolicy | None = None,
    tracker: Tracker | None = None,
) -> tuple[RewardModel, RewardReport, list[StepLog]]:
    """Train the reward LoRA and its head; `adapted` has a reference and a reward adapter.

    Raises:
        DataError: if there is no pair.
        StoppedError: if a stop was asked for; everything up to the last step is saved.
    """
    if not pairs:
        raise DataError(
            "the reward model needs pairs, and none fits train.max_length; give some under data.pairs"
        )
    adapted.train_only("reward")
    head = ScalarHead(adapted.head.features).to(adapted.device)
    model = RewardModel(head, adapted.reward_layer())
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    trunks = _trunks(adapted, sides, layer=model.layer, settings=settings, pad_id=pad_id)
    plan = pair_plan(pairs, settings, seed=seed)
    lora = [
        p for name, p in adapted.peft.named_parameters() if ".reward." in name and p.requires_grad
    ]
    groups: list[dict[str, Any]] = [
        {"params": lora, "lr": settings.lr, "weight_decay": 0.01},
        {"params": list(head.parameters()), "lr": settings.head_lr, "weight_decay": 0.01},
    ]
    optimizer = torch.optim.AdamW(groups)
    scheduler = get_cosine_schedule_with_warmup(optimizer, round(0.1 * len(plan)), len(plan))
    logs: list[StepLog] = []
    parts: dict[str, Part] = {
        "adapted": ModuleState(adapted),
        "head": ModuleState(head),
        "optimizer": OptimizerState(optimizer),
        "scheduler": SchedulerState(scheduler),
        "random": RandomState(),
        "steps": Values(
            lambda: [vars(log) for log in logs],
            lambda rows: logs.extend(StepLog(**row) for row in rows),
        ),
    }
    if checkpoints is None or checkpoints.restore(parts) is None:
        torch.manual_seed(seed)
        if checkpoints:
            checkpoints.begin(parts)

    def loss_of(indices: list[int], _: int) -> Loss:
        numbers = [2 * index + side for index in indices for side in (0, 1)]
        scores = _scores(
            model, adapted, [sides[n] for n in numbers], [trunks[n] for n in numbers], pad_id=pad_id
        )
        chosen, rejected = scores[0::2], scores[1::2]
        margin = settings.margin * torch.tensor(
            [pairs[index].distance for index in indices], device=scores.device
        )
        loss = bradley_terry(chosen, rejected, margin)
        accuracy = float((chosen > rejected).float().mean())
        return Loss(loss, {"accuracy": accuracy}, sum(len(sides[n]) for n in numbers))

    tracker = tracker or Tracker()
    tracker.begin(len(logs), [(log.step, step_scalars(log)) for log in logs])
    adapted.eval()  # the trunk was computed without dropout
    with bar("reward model", len(plan), done=len(logs), stoppable=False) as advance:

        def end(log: StepLog) -> None:
            advance(note=f"loss {log.loss:.3f} accuracy {log.parts['accuracy']:.2f}")
            tracker.write(log.step, step_scalars(log))
            if checkpoints:
                checkpoints.step_done(log.step, parts, last=log.step == len(plan))

        fit(
            plan,
            loss_of,
            optimizer=optimizer,
            scheduler=scheduler,
            clip_norm=clip_norm,
            on_end=end,
            logs=logs,
        )
    with torch.no_grad():
        reference = torch.cat(
            [
                _scores(
                    model,
                    adapted,
                    [sides[n] for n in batch],
                    [trunks[n] for n in batch],
                    pad_id=pad_id,
                )
                for batch in by_length(
                    [len(side) for side in sides], batch_tokens=settings.batch_tokens
                )
            ]
        )
        model.mean, model.std = (
            float(reference.mean()),
            max(1e-6, float(reference.std(unbiased=False))),
        )
        report = evaluate_reward(model, adapted, held_out, settings, pad_id=pad_id)
    head.requires_grad_(False)
    return model, report, logs


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
    """−log σ(chosen − rejected − margin), the mean over (n,) scores.

    Source:
        Bradley and Terry, Rank Analysis of Incomplete Block Designs, 1952; the margin as in Touvron
        et al., Llama 2, 2023.
    """
    return -functional.logsigmoid(chosen - rejected - margin).mean()


@torch.no_grad()
def evaluate_reward(
    model: RewardModel,
    adapted: Adapted,
    pairs: Sequence[EncodedPair],
    settings: RewardSettings,
    *,
    pad_id: int,
) -> RewardReport:
    """Accuracy, calibration and length bias on pairs."""
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    scores = torch.zeros(len(sides))
    for batch in by_length([len(side) for side in sides], batch_tokens=settings.batch_tokens):
        ids, mask = pad([list(sides[n]) for n in batch], value=pad_id)
        scores[batch] = (
            model.score(adapted, ids.to(adapted.device), mask.to(adapted.device)).float().cpu()
        )
    lengths = torch.tensor([float(len(side)) for side in sides])
    difference, longer = scores[0::2] - scores[1::2], lengths[0::2] > lengths[1::2]
    unequal = lengths[0::2] != lengths[1::2]
    # Scores are normalised; the law of Bradley and Terry holds for the raw ones.
    probability = torch.sigmoid(difference * model.std)
    wins = difference > 0
    accuracy = _mean(wins)
    varied = len(sides) > 2 and len(set(lengths.tolist())) > 1 and len(set(scores.tolist())) > 1
    return RewardReport(
        pairs=len(pairs),
        accuracy=accuracy,
        brier=_mean((1 - probability) ** 2),
        calibration_error=None if accuracy is None else abs(float(probability.mean()) - accuracy),
        longer_wins=_mean((wins == longer)[unequal]),
        longer_chosen=_mean(longer[unequal]),
        length_correlation=float(spearmanr(scores.numpy(), lengths.numpy())[0]) if varied else None,  # pyright: ignore
        reference_mean=model.mean,
        reference_std=model.std,
    )


def save_reward(folder: Path, adapted: Adapted, model: RewardModel, card: dict[str, Any]) -> None:
    """Write LoRA, head and card into an artifact's staging folder."""
    adapted.peft.save_pretrained(
        str(folder), selected_adapters=["reward"], save_embedding_layers=False
    )
    for path in (folder / "reward").iterdir():
        path.rename(folder / path.name)
    (folder / "reward").rmdir()
    (folder / "README.md").unlink(missing_ok=True)
    model.head.save(folder / REWARD_HEAD_FILE)
    facts = {"layer": model.layer, "mean": model.mean, "std": model.std}
    (folder / CARD).write_text(to_json({**card, **facts}), encoding="utf-8")


def load_reward(
    folder: Path, adapted: Adapted, *, base_fingerprint: str, settings: RewardSettings
) -> RewardModel:
    """Attach a saved reward model; `adapted` has its reference already.

    Raises:
        AdapterError: if it belongs to another base, or does not fit.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if card["base"]["fingerprint"] != base_fingerprint:
            raise AdapterError(
                f"{folder}: a reward model of another base ({card['base']['spec']!r}); train one with `aegis train reward`"
            )
        adapted.add_reward(settings.lora)
        result = set_peft_model_state_dict(
            adapted.peft, load_file(folder / "adapter_model.safetensors"), adapter_name="reward"
        )
        if result.unexpected_keys:
            raise KeyError(result.unexpected_keys[0])
        head = ScalarHead.load(folder / REWARD_HEAD_FILE).to(adapted.device).requires_grad_(False)
        adapted.train_only("default")
        return RewardModel(head, int(card["layer"]), float(card["mean"]), float(card["std"]))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise AdapterError(
            f"{folder}: not a readable reward model ({error}); train one with `aegis train reward`"
        ) from error


@torch.no_grad()
def _trunks(
    adapted: Adapted,
    sides: Sequence[tuple[int, ...]],
    *,
    layer: int,
    settings: RewardSettings,
    pad_id: int,
) -> list[Tensor]:
    """What enters `layer` for every side, (time, d) each, computed once for all epochs."""
    found: list[Tensor] = [torch.empty(0)] * len(sides)
    adapted.eval()
    with bar("reading pairs", len(sides)) as advance, adapted.acting_as("reference"):
        for batch in by_length([len(side) for side in sides], batch_tokens=settings.batch_tokens):
            ids, mask = pad([list(sides[n]) for n in batch], value=pad_id)
            states = adapted.trunk(
                ids.to(adapted.device), mask.to(adapted.device), layer=layer
            ).states
            for row, number in enumerate(batch):
                found[number] = states[row, : len(sides[number])].clone()
            advance(len(batch))
    return found


def _scores(
    model: RewardModel,
    adapted: Adapted,
    sides: Sequence[tuple[int, ...]],
    trunks: Sequence[Tensor],
    *,
    pad_id: int,
) -> Tensor:
    ids, mask = pad([list(side) for side in sides], value=pad_id)
    states = torch.nn.utils.rnn.pad_sequence(list(trunks), batch_first=True)
    trunk = Trunk(model.layer, states)
    return model.score(adapted, ids.to(adapted.device), mask.to(adapted.device), trunk=trunk)


def pair_plan(
    pairs: Sequence[EncodedPair], settings: RewardSettings | DpoSettings, *, seed: int
) -> list[list[int]]:
    """Batches of pairs, order and composition a function of (seed, epoch)."""
    plan: list[list[int]] = []
    for epoch in range(math.ceil(settings.epochs)):
        order = list(range(len(pairs)))
        rng = random.Random(f"pairs:{seed}:{epoch}")
        rng.shuffle(order)
        lengths = [2 * max(len(pairs[i].chosen), len(pairs[i].rejected)) for i in order]
        batches = [
            [order[i] for i in batch]
            for batch in by_length(lengths, batch_tokens=settings.batch_tokens)
        ]
        rng.shuffle(batches)
        share = min(1.0, settings.epochs - epoch)
        plan += batches[: max(1, round(share * len(batches)))]
    return plan


def _mean(values: Tensor) -> float | None:
    return float(values.float().mean()) if len(values) else None
