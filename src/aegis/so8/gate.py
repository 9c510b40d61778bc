"""Gates rotate hidden states block by block, as far as g = σ(α) opens them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from aegis.so8.rotation import BLOCK, GENERATORS, rotation

Mode = Literal["geodesic", "additive"]


class Gate(nn.Module):
    """A factor M on the input of a linear layer, the identity at g = 0.

    `geodesic`: M = exp(g·A), in SO(d) for every g. `additive`: M = I + g·exp(A), the first AEGIS's
    formula; its singular values are |1 + g·e^{iθ}|, so it scales what it rotates. With generators
    of zero, a geodesic gate is the identity whatever g is.

    Args:
        features: width d of the hidden state, a multiple of 8.
        alpha: the gate's opening before the sigmoid; set by the schedule through `set_alpha`.
        learn_alpha: make α a trainable parameter instead.
        std: standard deviation of the generators' initial values.

    Raises:
        ValueError: if `features` is not a positive multiple of 8, or the mode is unknown.
    """

    alpha: Tensor

    def __init__(
        self,
        features: int,
        *,
        mode: Mode = "geodesic",
        alpha: float = -5.0,
        learn_alpha: bool = False,
        std: float = 0.0,
    ) -> None:
        super().__init__()
        if features < BLOCK or features % BLOCK:
            raise ValueError(
                f"a gate's width must be a positive multiple of {BLOCK}, got {features}"
            )
        if mode not in get_args(Mode):
            raise ValueError(f"gate mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        self.features = features
        self.mode: Mode = mode
        self._held: Tensor | None = None
        blocks = features // BLOCK
        initial = torch.randn(blocks, GENERATORS) * std if std else torch.zeros(blocks, GENERATORS)
        self.generators = nn.Parameter(initial)
        value = torch.tensor(float(alpha))
        if learn_alpha:
            self.alpha = nn.Parameter(value)
        else:
            self.register_buffer("alpha", value)

    def set_alpha(self, alpha: float) -> None:
        """Open the gate to σ(alpha); −inf closes it for good."""
        with torch.no_grad():
            self.alpha.fill_(alpha)

    @property
    def opening(self) -> Tensor:
        """The scalar g = σ(α) in [0, 1]."""
        return torch.sigmoid(self.alpha)

    def rotation(self) -> Tensor:
        """Return the rotation (blocks, 8, 8): M itself if geodesic, exp(A) if additive."""
        if self.mode == "geodesic":
            return rotation(self.opening.to(self.generators.dtype) * self.generators)
        return rotation(self.generators)

    def matrix(self) -> Tensor:
        """Return M, (blocks, 8, 8), so that forward(h) = h · diag(M) for row vectors h."""
        rotated = self.rotation()
        if self.mode == "geodesic":
            return rotated
        eye = torch.eye(BLOCK, dtype=rotated.dtype, device=rotated.device)
        return eye + self.opening.to(rotated.dtype) * rotated

    def forward(self, hidden: Tensor) -> Tensor:
        """Multiply (..., d) by M, in the hidden state's own dtype."""
        matrix = self.matrix() if self._held is None else self._held
        return apply_blocks(hidden, matrix.to(hidden.dtype))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep M while entered: for sampling, where nothing changes from token to token."""
        self._held = self.matrix().detach()
        try:
            yield
        finally:
            self._held = None

    def extra_repr(self) -> str:
        return f"features={self.features}, mode={self.mode}, alpha={float(self.alpha):.3f}"


def apply_blocks(hidden: Tensor, blocks: Tensor) -> Tensor:
    """Multiply row vectors (..., d), 8 numbers at a time, by (d / 8, 8, 8) of one dtype."""
    split = hidden.reshape(-1, blocks.shape[0], BLOCK)
    return torch.bmm(split.transpose(0, 1), blocks).transpose(0, 1).reshape(hidden.shape)
