"""The one loop under every trainer: a plan of batches, a loss, an optimizer, and a log of every
step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aegis.errors import AegisError


@dataclass(frozen=True)
class Loss:
    """What a trainer computes for one batch: the scalar to minimise, its parts for the log, and the
    tokens it read."""

    total: Tensor
    parts: dict[str, float]
    tokens: int


@dataclass(frozen=True)
class StepLog:
    """One finished step. Times in seconds; `gradient_norm` before clipping."""

    step: int
    loss: float
    parts: dict[str, float]
    tokens: int
    seconds: float
    gradient_norm: float
    learning_rate: float
    extra: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """One flat line of history.jsonl."""
        flat = asdict(self)
        return {
            **{key: flat[key] for key in flat if key not in ("parts", "extra")},
            **self.parts,
            **self.extra,
        }


class Scheduler(Protocol):
    def step(self) -> None: ...
    def get_last_lr(self) -> list[Any]: ...


def fit(
    plan: Sequence[list[int]],
    loss_of: Callable[[list[int], int], Loss],
    *,
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler,
    clip_norm: float,
    on_begin: Callable[[int], dict[str, float]] = lambda _: {},
    on_end: Callable[[StepLog], None] = lambda _: None,
    logs: list[StepLog] | None = None,
) -> list[StepLog]:
    """Take one optimizer step a batch, from the first that `logs` does not hold yet to the plan's
    end.

    Args:
        plan: batches of example indices; the step number is the index into it, so (plan, step) is
            the whole data state.
        loss_of: (batch, step) → Loss.
        on_begin: sets what depends on the step (α) and returns it for the log.
        on_end: sees every step's log, after `logs` has it.
        logs: the steps done before, if any; the new ones are added to it.

    Raises:
        AegisError: if the loss or the gradient is not finite; nothing is stepped then.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    logs = [] if logs is None else logs
    for step in range(len(logs), len(plan)):
        begun = time.perf_counter()
        extra = on_begin(step)
        loss = loss_of(plan[step], step)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        norm = float(nn.utils.clip_grad_norm_(parameters, clip_norm))
        value = float(loss.total.detach())
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise AegisError(
                f"step {step + 1}: loss {value} and gradient norm {norm} must be finite; "
                "lower train.lr, or set model.dtype: float32"
            )
        rate = float(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        log = StepLog(
            step + 1, value, loss.parts, loss.tokens, time.perf_counter() - begun, norm, rate, extra
        )
        logs.append(log)
        on_end(log)
    return logs
