"""Heads that read one number from a hidden state: the value of a state, the reward of a
response."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aegis.errors import ModelError

VALUE, REWARD = "value_head.safetensors", "reward_head.safetensors"


class ScalarHead(nn.Module):
    """Normalises a hidden state and maps it to a number in float32, zero at first.

    Args:
        features: width d of the hidden state.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., d) → (...)."""
        return self.linear(self.norm(hidden.float())).squeeze(-1)

    def save(self, path: Path) -> None:
        save_file(
            {
                name: tensor.detach().cpu().contiguous()
                for name, tensor in self.state_dict().items()
            },
            path,
        )

    @classmethod
    def load(cls, path: Path) -> ScalarHead:
        """Read what `save` wrote.

        Raises:
            ModelError: if the file is absent or not such a head.
        """
        try:
            state = load_file(path)
            head = cls(state["linear.weight"].shape[1])
            head.load_state_dict(state)
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{path}: not a readable head; train again") from error
        return head


def last_real(hidden: Tensor, mask: Tensor) -> Tensor:
    """(batch, time, d), (batch, time) padded on the right → (batch, d): the state of each row's
    last real token."""
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
