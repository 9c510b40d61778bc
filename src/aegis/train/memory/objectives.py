"""Each training's real objective, on as many and as long rows as wanted, and its step's peak."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from aegis.config import DpoSettings, PpoSettings, RewardSettings, TrainSettings
from aegis.engine.response_grammar import SampledResponse
from aegis.model.adapted import Adapted
from aegis.model.heads import ScalarHead
from aegis.train.examples import Example
from aegis.train.group import GroupObjective, GrpoObjective, RlooObjective
from aegis.train.memory.rehearsal import peak_bytes, peak_bytes_of_step
from aegis.train.ppo import PpoObjective
from aegis.train.preference import DpoObjective, Preference
from aegis.train.reward import EncodedPair, RewardModel, RewardObjective
from aegis.train.rollout import Limiter, RolloutCollector
from aegis.train.services import LoopSettings
from aegis.train.sft import SupervisedData, SupervisedObjective, validate

_LOOP = LoopSettings(pad_id=0, seed=0)


def sft_objective(
    adapted: Adapted, settings: TrainSettings, rows: int, length: int
) -> SupervisedObjective:
    """Build SFT on one batch of `rows` times `length` tokens, all but the first with a loss."""
    adapted.train()
    settings = settings.model_copy(
        update={"autocast": "off", "batch_tokens": rows * length, "epochs": 1.0}
    )
    example = Example((0,) * length, 1, 0, (1.0,) * (length - 1))
    return SupervisedObjective(adapted, SupervisedData([example] * rows), settings, _LOOP)


def sft_peak(
    adapted: Adapted, settings: TrainSettings, rows: int, length: int, *, bfloat16: bool
) -> int:
    """Return the peak of SFT's step and of validation."""
    objective = sft_objective(adapted, settings, rows, length)
    training = peak_bytes_of_step(adapted, objective, bfloat16=bfloat16)
    prompts, settings = [Example((0,) * length, length, 0, ())] * (2 * rows), objective.settings
    validating = peak_bytes(adapted, lambda: validate(adapted, prompts, settings, pad_id=0))
    return max(training, validating)


def reward_objective(
    adapted: Adapted, settings: RewardSettings, rows: int, length: int
) -> RewardObjective:
    """Build the reward model's on one batch of `rows` sides of `length` tokens."""
    settings = settings.model_copy(update={"batch_tokens": rows * length, "epochs": 1.0})
    side = (0,) * length
    return RewardObjective(adapted, [EncodedPair(side, side, 1)] * (rows // 2), settings, _LOOP)


def reward_peak(adapted: Adapted, settings: RewardSettings, rows: int, length: int) -> int:
    """Return the peak of reading the pairs and of the reward model's step."""
    made: list[RewardObjective] = []
    reading = peak_bytes(
        adapted, lambda: made.append(reward_objective(adapted, settings, rows, length))
    )
    return max(reading, peak_bytes_of_step(adapted, made[0]))


def dpo_objective(adapted: Adapted, settings: DpoSettings, rows: int, length: int) -> DpoObjective:
    """Build DPO on one batch of `rows` sides of `length` tokens, all but the first a response."""
    settings = settings.model_copy(
        update={"batch_tokens": rows * length, "epochs": 1.0, "pairs": None}
    )
    side = (0,) * length
    return DpoObjective(adapted, [Preference(side, side, 1, 1, 0)] * (rows // 2), settings, _LOOP)


def dpo_peak(adapted: Adapted, settings: DpoSettings, rows: int, length: int) -> int:
    """Return the peak of DPO's step."""
    return peak_bytes_of_step(adapted, dpo_objective(adapted, settings, rows, length))


def policy_objective(
    adapted: Adapted, train: TrainSettings, *, prompt: int, length: int
) -> PpoObjective | GroupObjective:
    """Build PPO, GRPO or RLOO on prompts of `prompt` tokens, with the response of `length`.

    The reward model takes part if its LoRA is there.
    """
    settings = train.ppo if train.algorithm == "ppo" else train.group
    settings = settings.model_copy(update={"updates": 1})
    task = _LongestResponses(settings.batch, prompt, length, vocabulary=_vocabulary(adapted))
    reward = None
    if "reward" in adapted.peft.peft_config:
        head = ScalarHead(adapted.head.features).to(adapted.device)
        reward = RewardModel(head, adapted.reward_layer())
    collector = RolloutCollector(adapted, task, settings, pad_id=0, reward=reward)
    if isinstance(settings, PpoSettings):
        value = ScalarHead(adapted.head.features).to(adapted.device)
        return PpoObjective(collector, value, settings, _LOOP)
    kind = GrpoObjective if train.algorithm == "grpo" else RlooObjective
    return kind(collector, settings, _LOOP)


def policy_peaks(
    adapted: Adapted, train: TrainSettings, *, prompt: int, length: int
) -> tuple[int, int]:
    """Return the peaks of reading the prompts to sample from, and of an update with its scoring."""
    objective = policy_objective(adapted, train, prompt=prompt, length=length)
    ids = torch.zeros(objective.settings.batch, prompt, dtype=torch.long)

    @torch.no_grad()
    def read() -> None:
        adapted.hidden(ids, torch.ones_like(ids))

    return peak_bytes(adapted, read), peak_bytes_of_step(adapted, objective)


class _LongestResponses:
    """A task whose prompts and responses are as long as they may be."""

    decides = True

    def __init__(self, count: int, prompt: int, length: int, *, vocabulary: int) -> None:
        self.prompts: Sequence[tuple[int, ...]] = [(0,) * prompt] * count
        self.kinds: Sequence[int] = [0] * count
        self.limiter: Limiter | None = Limiter(torch.ones(vocabulary, dtype=torch.bool), (0,))
        self._steps = length - prompt

    def sample(
        self, prompts: Sequence[tuple[int, ...]], on_token: Callable[[], None]
    ) -> list[SampledResponse]:
        steps = self._steps
        ids, every = (0,) * steps, (True,) * steps
        return [SampledResponse(ask, ids, every, ids, every, (True,), ("",)) for ask in prompts]

    def terms(
        self, indices: Sequence[int], responses: Sequence[SampledResponse]
    ) -> list[dict[str, float]]:
        return [{"decision": 1.0} for _ in responses]

    def shaped_rewards(self, index: int, response: SampledResponse) -> dict[int, float]:
        return {}


def _vocabulary(adapted: Adapted) -> int:
    return adapted.base.get_output_embeddings().weight.shape[0]
