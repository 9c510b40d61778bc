"""The decision head: four logits from the last hidden states of the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from aegis.errors import ModelError
from aegis.protocol.decisions import NAMES

FILE = "decision_head.safetensors"
Pooling = Literal["last", "mean", "last+mean"]


class DecisionHead(nn.Module):
    """Standardises the pooled hidden state and maps it to logits over ALLOW, ESCALATION, DENY,
    REFUSE, in float32.

    Each dimension has its own mean and scale, measured on training prompts (`set_scale`): a few
    dimensions of a language model's states are hundreds of times larger than the rest and would
    drown them.

    Args:
        features: width d of the hidden state.
        pooling: the last token's state, the mean over the prompt's tokens, or both side by side.
        system_prompt: the system text that the prompt was read with; it belongs to what the head
            learned.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, features: int, *, pooling: Pooling = "last", system_prompt: str | None = None
    ) -> None:
        super().__init__()
        self.features, self.system_prompt = features, system_prompt
        self.pooling: Pooling = pooling
        width = features * len(pooling.split("+"))
        self.linear = nn.Linear(width, len(NAMES))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(batch, time, d) last hidden states and (batch, time) mask of the prompt's tokens →
        (batch, 4) logits."""
        return self.linear((self.pooled(hidden, mask) - self.mean) / self.scale)

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(batch, width): what the head reads, before it is standardised."""
        return pool(hidden.float(), mask, pooling=self.pooling)

    @torch.no_grad()
    def set_scale(self, pooled: Tensor) -> None:
        """Take mean and scale of each dimension from (n, width) pooled states."""
        self.mean.copy_(pooled.mean(0))
        self.scale.copy_(pooled.std(0) + 1e-3)

    def save(self, folder: Path) -> None:
        metadata = {
            "pooling": self.pooling,
            "features": str(self.features),
            "classes": ",".join(NAMES),
        }
        if self.system_prompt is not None:
            metadata["system_prompt"] = self.system_prompt
        tensors = {
            name: tensor.detach().contiguous().cpu() for name, tensor in self.state_dict().items()
        }
        save_file(tensors, folder / FILE, metadata=metadata)

    @classmethod
    def load(cls, folder: Path) -> DecisionHead:
        """Read a saved head.

        Raises:
            ModelError: if the file is absent or not a decision head.
        """
        path = folder / FILE
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            if metadata["classes"] != ",".join(NAMES):
                raise ModelError(
                    f"{path}: made for the classes {metadata['classes']}; train again with this version"
                )
            head = cls(
                int(metadata["features"]),
                pooling=metadata["pooling"],  # pyright: ignore[reportArgumentType] - checked by the shapes below
                system_prompt=metadata.get("system_prompt"),
            )
            head.load_state_dict(state)
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{path}: not a readable decision head; give a folder that `aegis fold` wrote"
            ) from error
        return head.eval()


def pool(hidden: Tensor, mask: Tensor, *, pooling: Pooling) -> Tensor:
    """(batch, time, d) → (batch, d), or (batch, 2d) for `last+mean`. Padding may be on either
    side."""
    parts = []
    for part in pooling.split("+"):
        if part == "last":
            last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
            parts.append(hidden[torch.arange(hidden.shape[0], device=hidden.device), last])
        else:
            weights = mask.to(hidden.dtype).unsqueeze(-1)
            parts.append((hidden * weights).sum(1) / weights.sum(1))
    return torch.cat(parts, dim=-1)
