"""Heads that read the last hidden states: the decision, the value of a state, the reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aegis.errors import ModelError
from aegis.protocol.decisions import NAMES

DECISION_HEAD_FILE = "decision_head.safetensors"
VALUE_HEAD_FILE = "value_head.safetensors"
REWARD_HEAD_FILE = "reward_head.safetensors"
Pooling = Literal["last", "mean", "last+mean"]


class DecisionHead(nn.Module):
    """Map the pooled, standardised hidden state to logits over ALLOW, ESCALATION, DENY, REFUSE.

    Each dimension has its own mean and scale, measured on training prompts (`set_scale`): a few
    dimensions of a language model's states are hundreds of times larger than the rest and would
    drown them.

    Args:
        features: width d of the hidden state.
        pooling: the last token's state, the mean over the prompt's tokens, or both side by side.
        system_prompt: the system text that the head's training prompts were read with.
    """

    file = DECISION_HEAD_FILE
    mean: Tensor
    scale: Tensor

    def __init__(
        self, features: int, *, pooling: Pooling = "last", system_prompt: str | None = None
    ) -> None:
        super().__init__()
        self.features, self.system_prompt = features, system_prompt
        self.pooling: Pooling = pooling
        width = features * len(pooling.split("+"))
        self.linear = _zeroed(nn.Linear(width, len(NAMES)))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(batch, time, d) last hidden states, (batch, time) mask of the prompt → (batch, 4)."""
        return self.from_pooled(self.pooled(hidden, mask))

    def logits(self, model: Any, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the (batch, 4) logits of prompts that a model has read; as in `forward`."""
        return self(hidden, mask)

    def from_pooled(self, pooled: Tensor) -> Tensor:
        """(batch, width) pooled hidden states → (batch, 4) logits."""
        return self.linear((pooled - self.mean) / self.scale)

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the (batch, width) float32 states that the head reads, not yet standardised."""
        return pool(hidden.float(), mask, pooling=self.pooling)

    @torch.no_grad()
    def set_scale(self, pooled: Tensor) -> None:
        """Take mean and scale of each dimension from (n, width) pooled states."""
        self.mean.copy_(pooled.mean(0))
        self.scale.copy_(pooled.std(0) + 1e-3)

    def save(self, folder: Path) -> None:
        """Write the head and how it pools into the folder."""
        metadata = {
            "pooling": self.pooling,
            "features": str(self.features),
            "classes": ",".join(NAMES),
        }
        if self.system_prompt is not None:
            metadata["system_prompt"] = self.system_prompt
        save_file(_state(self), folder / self.file, metadata=metadata)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a saved head.

        Raises:
            ModelError: if the file is absent or not a decision head.
        """
        path = folder / cls.file
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            if metadata["classes"] != ",".join(NAMES):
                raise ModelError(
                    f"{path}: made for the classes {metadata['classes']}; "
                    "train again with this version"
                )
            head = cls(
                int(metadata["features"]),
                pooling=metadata["pooling"],  # pyright: ignore[reportArgumentType] - load_state_dict checks it
                system_prompt=metadata.get("system_prompt"),
            )
            head.load_state_dict(state)
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{path}: not a readable decision head; give a folder that `aegis fold` wrote"
            ) from error
        return head.eval()


class ScalarHead(nn.Module):
    """Normalise a hidden state and map it to a number in float32, zero at first.

    Args:
        features: width d of the hidden state.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.linear = _zeroed(nn.Linear(features, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., d) → (...)."""
        return self.linear(self.norm(hidden.float())).squeeze(-1)

    def save(self, path: Path) -> None:
        """Write the head to a safetensors file."""
        save_file(_state(self), path)

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


def pool(hidden: Tensor, mask: Tensor, *, pooling: Pooling) -> Tensor:
    """(batch, time, d) → (batch, d), or (batch, 2d) for `last+mean`; padding on either side."""
    parts = []
    for part in pooling.split("+"):
        if part == "last":
            last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
            parts.append(hidden[torch.arange(hidden.shape[0], device=hidden.device), last])
        else:
            weights = mask.to(hidden.dtype).unsqueeze(-1)
            parts.append((hidden * weights).sum(1) / weights.sum(1))
    return torch.cat(parts, dim=-1)


def last_real(hidden: Tensor, mask: Tensor) -> Tensor:
    """(batch, time, d), mask padded on the right → (batch, d): each row's last real token."""
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]


def _zeroed(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _state(head: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
