"""What is scored of a response."""

from __future__ import annotations

import torch

from aegis.config import GroupSettings
from aegis.train.rollout import Limiter, RolloutCollector
from tests.train.test_ppo import Bandit
from tests.train.test_preference import (
    policy,
)


def test_the_limiter_is_part_of_what_is_scored() -> None:
    """A Bandit's responses cannot leave its choices, and neither can their probabilities."""
    adapted = policy()
    task = Bandit(adapted, length=3)
    collector = RolloutCollector(adapted, task, GroupSettings(), pad_id=1)
    collected = collector.collect([0, 1], lambda: None)
    paths, logs = collected.responses, collected.rollout.logprobs[[1, 0]]
    assert isinstance(task.limiter, Limiter)
    row = torch.tensor([[*paths[1].prompt, *paths[1].ids]])
    logits = (
        adapted.peft(input_ids=row).logits[0, 2:5].masked_fill(~task.limiter.allowed, -torch.inf)
    )
    expected = torch.log_softmax(logits, -1).gather(1, row[0, 3:].unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(logs[0, :3], expected.detach(), atol=1e-4, rtol=1e-4)
    assert logs.shape == (2, 3)
