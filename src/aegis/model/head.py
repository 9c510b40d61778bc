"""The decision head: four logits from the last hidden states of the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from aegis.decisions import NAMES
from aegis.errors import ModelError

FILE = "decision_head.safetensors"
Pooling = Literal["last", "mean", "last+mean"]


class DecisionHead(nn.Module):
    """Standardises the pooled hidden state and maps it to logits over ALLOW, ESCALATION, DENY, REFUSE, in float32.

    Args:
        features: width d of the hidden state.
        pooling: the last token's state, the mean over the prompt's tokens, or both side by side.
        system_prompt: the system text that the prompt was read with; it belongs to what the head learned.
    """

    def __init__(self, features: int, *, pooling: Pooling = "last", system_prompt: str | None = None) -> None:
        super().__init__()
        self.features, self.system_prompt = features, system_prompt
        self.pooling: Pooling = pooling
        self.linear = nn.Linear(features * len(pooling.split("+")), len(NAMES))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(batch, time, d) last hidden states and (batch, time) mask of the prompt's tokens → (batch, 4) logits."""
        pooled = pool(hidden.float(), mask, pooling=self.pooling)
        return self.linear(functional.layer_norm(pooled, pooled.shape[-1:]))

    def save(self, folder: Path) -> None:
        metadata = {"pooling": self.pooling, "features": str(self.features), "classes": ",".join(NAMES)}
        if self.system_prompt is not None:
            metadata["system_prompt"] = self.system_prompt
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.linear.state_dict().items()}
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
                raise ModelError(f"{path}: made for the classes {metadata['classes']}; train again with this version")
            head = cls(
                int(metadata["features"]),
                pooling=metadata["pooling"],  # pyright: ignore[reportArgumentType] - checked by the shapes below
                system_prompt=metadata.get("system_prompt"),
            )
            head.linear.load_state_dict(state)
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{path}: not a readable decision head; give a folder that `aegis fold` wrote") from error
        return head.eval()


def pool(hidden: Tensor, mask: Tensor, *, pooling: Pooling) -> Tensor:
    """(batch, time, d) → (batch, d), or (batch, 2d) for `last+mean`. Padding may be on either side."""
    parts = []
    for part in pooling.split("+"):
        if part == "last":
            last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
            parts.append(hidden[torch.arange(hidden.shape[0], device=hidden.device), last])
        else:
            weights = mask.to(hidden.dtype).unsqueeze(-1)
            parts.append((hidden * weights).sum(1) / weights.sum(1))
    return torch.cat(parts, dim=-1)
