"""The reward model: LoRA and a scalar head on the supervised model, trained on pairs."""

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
from torch.nn.utils.rnn import pad_sequence

from aegis.config import DpoSettings, RewardSettings
from aegis.errors import AdapterError, DataError
from aegis.model.adapted import Adapted
from aegis.model.heads import REWARD_HEAD_FILE, ScalarHead, last_real
from aegis.model.prompt import by_length, pad
from aegis.model.trunk import Trunk
from aegis.runs.reporter import bar
from aegis.storage.files import to_json
from aegis.train.loop import Loss, Objective, StepLog, TrainLoop, cosine_share
from aegis.train.services import LoopSettings, TrainServices
from aegis.train.state import ModuleState, Part

CARD = "reward.json"


@dataclass(frozen=True)
class EncodedPair:
    """Both sides as ids, prompt included; `distance` in steps of severity of their decisions."""

    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    distance: int


@dataclass
class RewardModel:
    """Scores whole responses, mean 0 and standard deviation 1 on its reference samples.

    Args:
        head: reads the last token's hidden state.
        layer: first decoder layer that the reward model's LoRA changes.
        mean, std: of the raw scores of the reference samples.
    """

    head: ScalarHead
    layer: int
    mean: float = 0.0
    std: float = 1.0

    def score(
        self, adapted: Adapted, ids: Tensor, mask: Tensor, *, trunk: Trunk | None = None
    ) -> Tensor:
        """Score (batch, time) ids, padded on the right: (batch,)."""
        with adapted.acting_as("reward"):
            hidden = adapted.hidden(ids, mask, trunk=trunk)
        return (self.head(last_real(hidden, mask)) - self.mean) / self.std


@dataclass(frozen=True)
class RewardReport:
    """How good a reward model is on held-out pairs; None where they are too few.

    Args:
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
    loop: LoopSettings,
    services: TrainServices | None = None,
) -> tuple[RewardModel, RewardReport, list[StepLog]]:
    """Train the reward LoRA and its head; `adapted` has a reference and a reward adapter.

    Raises:
        DataError: if there is no pair.
        StoppedError: if a stop was asked for; everything up to the last step is saved.
    """
    if not pairs:
        raise DataError(
            "the reward model needs pairs, and none fits train.max_length; give some under "
            "data.pairs"
        )
    objective = RewardObjective(adapted, pairs, settings, loop)
    logs = TrainLoop(objective, loop, services or TrainServices()).run()
    model = objective.model
    with torch.no_grad():
        raw = objective.raw_scores()
        model.mean, model.std = float(raw.mean()), max(1e-6, float(raw.std(unbiased=False)))
        report = evaluate_reward(model, adapted, held_out, settings, pad_id=loop.pad_id)
    model.head.requires_grad_(False)
    return model, report, logs


@dataclass(frozen=True)
class SideBatch:
    """Sides of pairs from the reward model's lowest layer up, padded on the right.

    Args:
        ids: (sides, time), chosen and rejected of one pair after the other; `mask` the same.
        states: (sides, time, d) what enters the layer.
        margin: (sides / 2,) how much further apart the sides of a pair must be.
    """

    ids: Tensor
    mask: Tensor
    states: Tensor
    margin: Tensor


class RewardObjective(Objective[SideBatch]):
    """Bradley and Terry's law on pairs. Without dropout, for so the trunk below was computed."""

    name, label, remedy = "reward", "reward model", "Lower train.reward.lr"

    def __init__(
        self,
        adapted: Adapted,
        pairs: Sequence[EncodedPair],
        settings: RewardSettings,
        loop: LoopSettings,
    ) -> None:
        adapted.train_only("reward")
        adapted.eval()
        self.adapted, self.pairs, self.settings, self.loop = adapted, pairs, settings, loop
        head = ScalarHead(adapted.head.features).to(adapted.device)
        self.model = RewardModel(head, adapted.reward_layer())
        self.sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
        self.states = self._states_below()
        self.plan = pair_plan(pairs, settings, seed=loop.seed)
        self.steps = len(self.plan)
        named = adapted.peft.named_parameters()
        lora = [p for name, p in named if ".reward." in name and p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": lora, "lr": settings.lr, "weight_decay": 0.01},
            {"params": list(head.parameters()), "lr": settings.head_lr, "weight_decay": 0.01},
        ]
        self.optimizer = torch.optim.AdamW(groups)

    def parts(self) -> dict[str, Part]:
        return {"adapted": ModuleState(self.adapted), "head": ModuleState(self.model.head)}

    def rate(self, step: int) -> float:
        return cosine_share(step, self.steps, warmup=0.1)

    def batches(self, step: int) -> Sequence[SideBatch]:
        return [self._batch([2 * pair + side for pair in self.plan[step] for side in (0, 1)])]

    def loss(self, batch: SideBatch, step: int) -> Loss:
        scores = self._scores(batch)
        chosen, rejected = scores[0::2], scores[1::2]
        accuracy = (chosen > rejected).float().mean()
        total = bradley_terry(chosen, rejected, batch.margin)
        return Loss(total, {"accuracy": accuracy}, batch.mask.sum())

    def epoch(self, done: int) -> int:
        return math.ceil(done / self.steps * self.settings.epochs)

    def samples(self, step: int) -> int:
        return len(self.plan[step])

    def note(self, log: StepLog | None) -> str:
        return f"loss {log.loss:.3f} accuracy {log.parts['accuracy']:.2f}" if log else ""

    def raw_scores(self) -> Tensor:
        """Return the (sides,) scores of everything that was trained on, by length."""
        lengths = [len(side) for side in self.sides]
        plan = by_length(lengths, batch_tokens=self.settings.batch_tokens)
        return torch.cat([self._scores(self._batch(numbers)) for numbers in plan])

    def _scores(self, batch: SideBatch) -> Tensor:
        trunk = Trunk(self.model.layer, batch.states)
        return self.model.score(self.adapted, batch.ids, batch.mask, trunk=trunk)

    def _batch(self, numbers: Sequence[int]) -> SideBatch:
        ids, mask = pad([list(self.sides[n]) for n in numbers], value=self.loop.pad_id)
        states = pad_sequence([self.states[n] for n in numbers], batch_first=True)
        distances = [self.pairs[n // 2].distance for n in numbers[::2]]
        device = self.adapted.device
        margin = self.settings.margin * torch.tensor(distances, device=device)
        return SideBatch(ids.to(device), mask.to(device), states, margin)

    @torch.no_grad()
    def _states_below(self) -> list[Tensor]:
        """Compute what enters the lowest layer of every side, (time, d) each, for all epochs."""
        states = [torch.empty(0)] * len(self.sides)
        lengths, device = [len(side) for side in self.sides], self.adapted.device
        plan = by_length(lengths, batch_tokens=self.settings.batch_tokens)
        with bar("reading pairs", len(lengths)) as advance, self.adapted.acting_as("reference"):
            for numbers in plan:
                ids, mask = pad([list(self.sides[n]) for n in numbers], value=self.loop.pad_id)
                trunk = self.adapted.trunk(ids.to(device), mask.to(device), layer=self.model.layer)
                for number, row in zip(numbers, trunk.states, strict=True):
                    states[number] = row[: lengths[number]].clone()
                advance(len(numbers))
        return states


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
    """Return the mean of −log σ(chosen − rejected − margin) over (n,) scores.

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
    """Measure accuracy, calibration and length bias on pairs."""
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    scores = torch.zeros(len(sides))
    for batch in by_length([len(side) for side in sides], batch_tokens=settings.batch_tokens):
        ids, mask = pad([list(sides[n]) for n in batch], value=pad_id)
        ids, mask = ids.to(adapted.device), mask.to(adapted.device)
        scores[batch] = model.score(adapted, ids, mask).float().cpu()
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
                f"{folder}: a reward model of another base ({card['base']['spec']!r}); train one "
                "with `aegis train reward`"
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


def pair_plan(
    pairs: Sequence[EncodedPair], settings: RewardSettings | DpoSettings, *, seed: int
) -> list[list[int]]:
    """Return batches of pairs, order and composition a function of (seed, epoch)."""
    plan: list[list[int]] = []
    for epoch in range(math.ceil(settings.epochs)):
        order = list(range(len(pairs)))
        rng = random.Random(f"pairs:{seed}:{epoch}")
        rng.shuffle(order)
        lengths = [2 * max(len(pairs[i].chosen), len(pairs[i].rejected)) for i in order]
        by_tokens = by_length(lengths, batch_tokens=settings.batch_tokens)
        batches = [[order[i] for i in batch] for batch in by_tokens]
        rng.shuffle(batches)
        share = min(1.0, settings.epochs - epoch)
        plan += batches[: max(1, round(share * len(batches)))]
    return plan


def _mean(values: Tensor) -> float | None:
    return float(values.float().mean()) if len(values) else None
